//! A simulated HTTP/1.1 connection: one request after the other, each with its whole answer.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;

use crate::engine::sim::{LinkId, LinkOptions, World};
use crate::ids::ShardId;

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The connection ends with it.
    pub(super) closes: bool,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Whether it is a refusal with this code.
    pub(super) fn says(&self, code: &str) -> bool {
        memchr::memmem::find(&self.body, code.as_bytes()).is_some()
    }
}

/// What a request has come to.
pub(super) enum Progress {
    /// Nothing yet.
    Waits,
    Answered(Answer),
    /// The connection has ended or broken.
    Ended,
}

/// The connection.
pub(super) struct Exchange {
    link: LinkId,
    output: Vec<u8>,
    input: Vec<u8>,
}

impl Exchange {
    /// Connects to the listener of `shard`; none when that has closed.
    pub(super) fn connect(world: &Rc<RefCell<World>>, shard: ShardId, options: LinkOptions) -> Option<Self> {
        let link = world.borrow_mut().connect(shard, options).ok()?;
        Some(Self { link, output: Vec::new(), input: Vec::new() })
    }

    /// Asks. The answer to what was asked before has come.
    pub(super) fn ask(&mut self, head: &str, body: &[u8]) {
        self.output = [head.as_bytes(), body].concat();
        self.input.clear();
    }

    /// Writes and reads what is possible now.
    pub(super) fn go_on(&mut self, world: &Rc<RefCell<World>>) -> Progress {
        let mut world = world.borrow_mut();
        // What cannot be written any more may have been answered all the same.
        if !self.output.is_empty()
            && let Ok(count) = world.client_write(self.link, &self.output)
        {
            self.output.drain(..count);
        }
        let mut buffer = [0; 4096];
        let ended = loop {
            match world.client_read(self.link, &mut buffer) {
                Ok(0) => break true,
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        match self.answer() {
            Some(answer) => Progress::Answered(answer),
            None if ended => Progress::Ended,
            None => Progress::Waits,
        }
    }

    /// The answer, once it is whole.
    fn answer(&self) -> Option<Answer> {
        let end = memchr::memmem::find(&self.input, b"\r\n\r\n")? + 4;
        let head = str::from_utf8(&self.input[..end]).unwrap_or_else(|_| panic!("the head of an answer is not text"));
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length = header("Content-Length: ").and_then(|length| length.parse::<usize>().ok());
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let (Some(status), Some(length)) = (status, length) else { panic!("an answer without status and length: {head}") };
        assert!(self.input.len() <= end + length, "something comes behind an answer of {length} bytes that nobody has asked for");
        let body = self.input.get(end..end + length)?.to_vec();
        Some(Answer { status, closes: header("Connection: close").is_some(), body })
    }

    /// Gives the connection up; whether by a reset.
    pub(super) fn close(self, world: &Rc<RefCell<World>>, resets: bool) {
        if resets {
            world.borrow_mut().client_reset(self.link);
        }
        world.borrow_mut().client_close(self.link);
    }
}
