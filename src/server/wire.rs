//! Bytes and descriptors between this process and the next (unix(7), SCM_RIGHTS).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::gateway::CHUNK_SOCKETS;

/// One end. Descriptors come in the order in which they were sent, and none comes later than the bytes that it was sent with.
pub struct Wire {
    stream: UnixStream,
    received: VecDeque<OwnedFd>,
}

impl Wire {
    /// On this socket. No call waits longer than `patience`.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, received: VecDeque::new() })
    }

    /// Sends bytes, at least one, and descriptors, at most [`CHUNK_SOCKETS`], which come with the first byte.
    ///
    /// # Errors
    /// As sendmsg(2). The receiver is gone: EPIPE.
    pub fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut rest = bytes;
        if !descriptors.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK_SOCKETS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("more descriptors than go with one message"));
            }
            let sent = retry_on_intr(|| sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
            rest = &bytes[sent..];
        }
        self.stream.write_all(rest)
    }

    /// The next descriptor that has come.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.received.pop_front()
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    /// As shutdown(2).
    pub fn end(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Reads up to the end of a line, and not beyond it. Empty at the end of the stream.
    ///
    /// # Errors
    /// As recvmsg(2), and a line of over 1000 bytes.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < 1000 {
            if self.read(&mut byte)? == 0 || byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
        Err(io::Error::other("a line without an end"))
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = retry_on_intr(|| recvmsg(&self.stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.received.extend(descriptors);
            }
        }
        Ok(message.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn bytes_and_descriptors_come_in_order() {
        let patience = Duration::from_secs(10);
        let (one, other) = UnixStream::pair().expect("a pair");
        let (mut one, mut other) = (Wire::new(one, patience).expect("a wire"), Wire::new(other, patience).expect("a wire"));
        let (passed, mut kept) = UnixStream::pair().expect("a pair");
        let null = std::fs::File::open("/dev/null").expect("it is there");
        one.send(b"first\n", &[]).expect("it is listened to");
        one.send(b"second\n", &[passed.as_fd(), null.as_fd()]).expect("it is listened to");
        one.send(&[b'x'; 100_000], &[null.as_fd(); CHUNK_SOCKETS]).expect("it is listened to");
        one.end().expect("it is open");
        assert_eq!(other.line().expect("a line"), "first");
        assert!(other.descriptor().is_none());
        assert_eq!(other.line().expect("a line"), "second");
        let mut passed = UnixStream::from(other.descriptor().expect("the first"));
        other.descriptor().expect("the second");
        kept.write_all(b"here").expect("it is open");
        let mut here = [0; 4];
        passed.read_exact(&mut here).expect("four bytes");
        let mut rest = Vec::new();
        assert_eq!(other.read_to_end(&mut rest).expect("an end"), 100_000);
        assert_eq!(std::iter::from_fn(|| other.descriptor()).count(), CHUNK_SOCKETS);
        drop(other);
        assert_eq!(one.send(b"to nobody", &[null.as_fd()]).expect_err("nobody listens").kind(), io::ErrorKind::BrokenPipe);
    }
}
