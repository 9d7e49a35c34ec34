//! The simulated kernel keeps the rules that the real one keeps: the ring's driver over it, in calm weather and in storms.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::{Chaos, Choices, LinkId, LinkOptions, SimKernel, SimRingSize, World};
use crate::engine::driver::{Driver, Event, Wait};
use crate::engine::driver_tests::bench::{Client, Setting, TURN};
use crate::engine::driver_tests::{self, driver_tests};
use crate::engine::recv_pool::RecvPool;
use crate::engine::sys::Listener;
use crate::engine::uring::UringDriver;
use crate::ids::ShardId;

/// Storms that each rule is tried in.
const STORMS: u64 = 20;

/// A world with a driver for each of two shards.
struct Simulated {
    world: Rc<RefCell<World>>,
    seed: u64,
    ring: SimRingSize,
    link: LinkOptions,
}

impl Simulated {
    fn calm() -> Self {
        Self::new(0, Chaos::CALM, SimRingSize { completions: 256, reap: 512 })
    }

    fn stormy(seed: u64) -> Self {
        let mut choices = Choices::seeded(seed);
        Self::new(seed, Chaos::STORM, SimRingSize { completions: choices.of(&[8, 64, 256]), reap: choices.of(&[1, 8, 512]) })
    }

    fn new(seed: u64, chaos: Chaos, ring: SimRingSize) -> Self {
        let world = Rc::new(RefCell::new(World::new(Choices::seeded(seed), chaos)));
        Self { world, seed, ring, link: LinkOptions::default() }
    }

    fn chaos(&self) -> Chaos {
        self.world.borrow().chaos
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the world of seed {}: {:?}, {:?}", self.seed, self.chaos(), self.ring);
        }
    }
}

impl Setting for Simulated {
    type Driver = UringDriver<SimKernel>;
    type Client = SimClient;
    type Address = ShardId;

    const FLOOD: usize = 1 << 20;
    /// A turn may end after one completion, and what is late comes within 2 ms.
    const SETTLED: usize = 60;
    const TURNS_MAX: usize = 50_000;

    fn driver(&self, shard: ShardId) -> (Self::Driver, ShardId) {
        let added = self.world.borrow_mut().add_ring(self.ring, RecvPool::new(16, 1024));
        assert_eq!(added, shard, "the lower shard is made first");
        (UringDriver::new(SimKernel::new(&self.world, shard)), shard)
    }

    fn listener(&self, _: &ShardId) -> Listener {
        Listener::SIMULATED
    }

    fn connect(&self, shard: &ShardId) -> io::Result<SimClient> {
        let link = self.world.borrow_mut().connect(*shard, self.link)?;
        Ok(SimClient { world: Rc::clone(&self.world), link })
    }

    /// The wait that the simulated kernel leaves to its caller lies between the halves of the turn.
    fn turn(&self, driver: &mut Self::Driver, shard: &ShardId, events: &mut Vec<Event>) {
        driver.enter(Wait::For(TURN)).expect("the driver goes on");
        loop {
            let mut world = self.world.borrow_mut();
            world.stir();
            let due = world.due(*shard).expect("the wait has an end");
            if due <= world.now {
                break;
            }
            // What the kernel has put off, it tries again a little later.
            let soon = world.now + Duration::from_micros(20);
            world.now = due.min(world.next_deed().map_or(due, |deed| deed.max(soon)));
        }
        driver.collect(events);
    }

    fn wakes_for_nothing(&self) -> bool {
        self.chaos().spurious_wake > 0
    }

    fn resets_overtake(&self) -> bool {
        self.chaos() != Chaos::CALM
    }
}

struct SimClient {
    world: Rc<RefCell<World>>,
    link: LinkId,
}

impl Read for SimClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.world.borrow_mut().client_read(self.link, buffer)
    }
}

impl Write for SimClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.world.borrow_mut().client_write(self.link, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client for SimClient {
    fn shut_write(&mut self) {
        self.world.borrow_mut().client_shut(self.link);
    }

    fn reset(self) {
        self.world.borrow_mut().client_reset(self.link);
    }

    fn address(&self) -> SocketAddr {
        self.link.address()
    }
}

impl Drop for SimClient {
    fn drop(&mut self) {
        self.world.borrow_mut().client_close(self.link);
    }
}

mod calm {
    use super::*;
    driver_tests!([Simulated::calm()]);

    #[test]
    fn a_send_right_before_a_close_still_goes_out() {
        driver_tests::a_send_right_before_a_close_still_goes_out(&Simulated::calm());
    }
}

mod stormy {
    use super::*;
    driver_tests!((0..STORMS).map(Simulated::stormy));
}
