//! Simulated clients that are not WebSockets: browsers that ask for pages, and senders of garbage.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use super::plan::{ClientPlan, Wish};
use crate::engine::sim::{Choices, LinkId, World};
use crate::time::Time;

const PAGE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n";
const UPGRADE: &[u8] = b"GET /ws?room=strangers HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2ltdWxhdGVkIGNsaWVudA==\r\n\r\n";
const ANSWER_END: &[u8] = b"\r\n\r\nok\n";

/// One of them.
pub(super) struct Stranger {
    plan: ClientPlan,
    id: usize,
    link: Option<LinkId>,
    pub(super) next_at: Time,
    over: bool,
    /// What is still to be written.
    output: Vec<u8>,
    asked: usize,
    answered: usize,
    input: Vec<u8>,
}

impl Stranger {
    pub(super) fn new(id: usize, plan: ClientPlan) -> Self {
        let input = Vec::new();
        Self { plan, id, link: None, next_at: Time::ZERO, over: false, output: Vec::new(), asked: 0, answered: 0, input }
    }

    /// Whether it has gone.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Gives its connection up.
    pub(super) fn give_up(&mut self, world: &Rc<RefCell<World>>) {
        self.over = true;
        if let Some(link) = self.link.take() {
            world.borrow_mut().client_close(link);
        }
    }

    /// Does the next thing. In a gentle world (`served`) every page that is asked for comes.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, served: bool) {
        let pause = world.borrow_mut().choices.within(0..=2000) as u64;
        self.next_at = world.borrow().now + Duration::from_micros(pause);
        let Some(link) = self.link else {
            let connected = world.borrow_mut().connect(self.plan.shard, self.plan.link);
            match connected {
                Ok(link) => self.link = Some(link),
                Err(_) => self.over = true,
            }
            return;
        };
        if !self.read(world, link) {
            let gentle = served && self.plan.wish == Wish::Page && !self.plan.link.fragile;
            assert!(!gentle, "stranger {}: {} of {} pages came, and then the stream ended", self.id, self.answered, self.asked);
            return self.give_up(world);
        }
        if self.output.is_empty() && !self.ask(&mut world.borrow_mut().choices) {
            return self.give_up(world);
        }
        let written = world.borrow_mut().client_write(link, &self.output);
        match written {
            Ok(count) => drop(self.output.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.give_up(world),
        }
    }

    /// Whether there is, or may come, more to say.
    fn ask(&mut self, choices: &mut Choices) -> bool {
        match self.plan.wish {
            Wish::Page if self.asked >= self.plan.messages.max(1) => self.answered < self.asked,
            Wish::Page => {
                // Sometimes pipelined.
                for _ in 0..choices.of(&[1, 1, 3]) {
                    self.output.extend(PAGE);
                    self.asked += 1;
                }
                true
            }
            _ => {
                self.asked += 1;
                match choices.below(6) {
                    0 => self.output.extend(UPGRADE),
                    1 => self.output.extend(&UPGRADE[..choices.below(UPGRADE.len())]),
                    2 => self.output.extend(PAGE),
                    _ => (0..choices.within(1..=64)).for_each(|_| self.output.push(choices.below(256) as u8)),
                }
                self.asked < 10
            }
        }
    }

    /// Reads what has come; false at the end.
    fn read(&mut self, world: &Rc<RefCell<World>>, link: LinkId) -> bool {
        let mut buffer = [0; 4096];
        loop {
            let read = world.borrow_mut().client_read(link, &mut buffer);
            match read {
                Ok(0) => return false,
                Ok(count) => self.input.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        while self.plan.wish == Wish::Page
            && let Some(end) = self.input.windows(ANSWER_END.len()).position(|window| window == ANSWER_END)
        {
            assert!(self.input.starts_with(b"HTTP/1.1 200 "), "stranger {}: {}", self.id, String::from_utf8_lossy(&self.input));
            self.input.drain(..end + ANSWER_END.len());
            self.answered += 1;
        }
        true
    }
}
