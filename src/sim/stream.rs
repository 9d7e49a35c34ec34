//! A client's end of a simulated connection as a byte stream, for a codec that knows nothing of the simulation.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use crate::engine::sim::{LinkId, World};

/// The stream. Never blocks.
pub(super) struct SimStream {
    world: Rc<RefCell<World>>,
    link: LinkId,
    masks: Masks,
}

impl SimStream {
    /// The client's end of `link`. A request comes first; frames follow.
    pub(super) fn new(world: &Rc<RefCell<World>>, link: LinkId) -> Self {
        Self { world: Rc::clone(world), link, masks: Masks::default() }
    }
}

impl Read for SimStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.world.borrow_mut().client_read(self.link, buffer)
    }
}

impl Write for SimStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        let mut masked = bytes[..bytes.len().min(world.writable(self.link))].to_vec();
        let before = self.masks;
        self.masks.apply(&mut masked);
        let taken = world.client_write(self.link, if masked.is_empty() { bytes } else { &masked });
        if taken.is_err() {
            self.masks = before;
        }
        taken
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Replaces the masks of frames, which the codec draws from the system's randomness, by ones that follow from what was sent before: one seed is one run.
#[derive(Clone, Copy, Default)]
struct Masks {
    at: Place,
    /// What to change in the payload: the codec's mask and ours together.
    change: [u8; 4],
    /// Payload bytes that are left.
    left: u64,
    /// Bytes of the header's length, and of the mask, that were seen.
    seen: u8,
    length_bytes: u8,
    frames: u32,
    /// The last four bytes of the request, to find its end.
    tail: [u8; 4],
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Request,
    OpCode,
    Length,
    LongLength,
    Mask,
    Payload,
}

impl Masks {
    fn apply(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            match self.at {
                Place::Request => {
                    self.tail.rotate_left(1);
                    self.tail[3] = *byte;
                    if self.tail == *b"\r\n\r\n" {
                        self.at = Place::OpCode;
                    }
                }
                Place::OpCode => self.at = Place::Length,
                Place::Length => {
                    self.left = u64::from(*byte & 0x7f);
                    self.length_bytes = match self.left {
                        126 => 2,
                        127 => 8,
                        _ => 0,
                    };
                    self.seen = 0;
                    self.at = if self.length_bytes > 0 { Place::LongLength } else { Place::Mask };
                    if self.length_bytes > 0 {
                        self.left = 0;
                    }
                }
                Place::LongLength => {
                    self.left = self.left << 8 | u64::from(*byte);
                    self.seen += 1;
                    if self.seen == self.length_bytes {
                        self.seen = 0;
                        self.at = Place::Mask;
                    }
                }
                Place::Mask => {
                    let ours = self.frames.wrapping_mul(0x9e37_79b1).to_be_bytes()[self.seen as usize];
                    self.change[self.seen as usize] = *byte ^ ours;
                    *byte = ours;
                    self.seen += 1;
                    if self.seen == 4 {
                        self.seen = 0;
                        self.frames += 1;
                        self.at = if self.left > 0 { Place::Payload } else { Place::OpCode };
                    }
                }
                Place::Payload => {
                    *byte ^= self.change[usize::from(self.seen)];
                    self.seen = (self.seen + 1) % 4;
                    self.left -= 1;
                    if self.left == 0 {
                        self.at = Place::OpCode;
                    }
                }
            }
        }
    }
}
