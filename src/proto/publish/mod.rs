//! Publishing over HTTP: the JSON bodies of `POST /v1/publish` ([`body`]), keys ([`key`]), and the answers to it and to `POST /publish`
//! ([`results`]).
//!
//! One item that is wrong does not stop the others: each has its own result, in the order of the items.
#![forbid(unsafe_code)]

pub mod body;
pub mod key;
pub mod results;

pub use body::{BodyError, Item, ItemError, ItemFault, PublishBody, PublishLimits};
pub use key::{Key, KeyError};
pub use results::{ErrorBody, ItemOutcome, Outcome, encode_results};
