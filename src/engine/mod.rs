//! Bytes and wake-ups: what the gateway needs of the operating system, and nothing of what the bytes mean.
//!
//! Two seams. Above, [`driver::Driver`]: sockets as events and requests, without a trace of readiness, re-arming, starvation, short
//! sends or descriptors that ran out. Below the ring's driver, [`kernel::Kernel`]: operations that own their resources in,
//! completions out, so that a simulated kernel can stand in. All `unsafe` of the crate lives in this module: [`segment`] (shared
//! append-only memory), [`recv_pool`] (buffers lent to the kernel and to the gateway), `uring/ring` (submission entries), [`epoll`] (its own system calls) and
//! [`sys`] (all others).

pub mod driver;
#[cfg(test)]
pub(crate) mod driver_tests;
pub mod epoll;
pub mod kernel;
pub mod log;
pub mod mailbox;
pub mod recv_pool;
mod rest;
pub mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod slab;
pub mod sys;
pub mod timers;
pub mod uring;
pub mod wakers;
