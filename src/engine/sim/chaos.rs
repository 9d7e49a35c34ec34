//! Which faults a simulated kernel produces, and how often.

/// Chances in a thousand, each taken whenever the fault is possible. All of them are things that a kernel or a network may do, except
/// [`ghost`](Self::ghost), which only a broken one would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chaos {
    /// An operation that could complete waits for another time, so that operations complete in any order.
    pub defer: u16,
    /// A completion is queued before earlier ones of other operations.
    pub reorder: u16,
    /// A receive brings fewer bytes than there are.
    pub short_recv: u16,
    /// A send takes fewer bytes than there is room for.
    pub short_send: u16,
    /// A receive fails with ENOBUFS although there are buffers.
    pub starve: u16,
    /// A multishot operation ends although nothing is wrong.
    pub lose_more: u16,
    /// An accept fails with EMFILE, ENFILE, ENOBUFS, ENOMEM or ECONNABORTED.
    pub accept_fails: u16,
    /// A receive or send is interrupted (EINTR, EAGAIN).
    pub interrupt: u16,
    /// A cancellation takes effect later, when what it was meant for may be over.
    pub late_cancel: u16,
    /// A cancellation takes effect twice, the second time on whatever has the same token by then.
    pub twice_cancel: u16,
    /// A wake-up arrives late, as if it were lost.
    pub late_wake: u16,
    /// A wake-up from ring to ring fails, which its sender is told.
    pub wake_fails: u16,
    /// An eventfd is read although nobody has signalled.
    pub spurious_wake: u16,
    /// A connection breaks (ETIMEDOUT), where its client said that this may happen.
    pub break_link: u16,
    /// A completion of an operation whose slot is long free, with a buffer.
    pub ghost: u16,
}

impl Chaos {
    /// No faults: everything completes at once and whole.
    pub const CALM: Self = Self {
        defer: 0,
        reorder: 0,
        short_recv: 0,
        short_send: 0,
        starve: 0,
        lose_more: 0,
        accept_fails: 0,
        interrupt: 0,
        late_cancel: 0,
        twice_cancel: 0,
        late_wake: 0,
        wake_fails: 0,
        spurious_wake: 0,
        break_link: 0,
        ghost: 0,
    };

    /// Many of all the faults that neither the users of a driver nor the clients of a gateway may notice.
    pub const STORM: Self = Self {
        defer: 300,
        reorder: 300,
        short_recv: 500,
        short_send: 500,
        starve: 100,
        lose_more: 300,
        interrupt: 100,
        late_cancel: 500,
        twice_cancel: 500,
        late_wake: 300,
        wake_fails: 300,
        spurious_wake: 20,
        ghost: 500,
        ..Self::CALM
    };
}
