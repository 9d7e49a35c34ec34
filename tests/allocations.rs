//! What a publication and a delivery allocate: a counting allocator under a real gateway over the simulated kernel, whose own allocations are not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use shardcast::sim::{Border, Bordered, Crowd};

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
            BYTES.set(BYTES.get() + layout.size() as u64);
        }
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Leaves the kernel's part out.
#[derive(Default)]
struct Uncounted {
    counting: Cell<bool>,
}

impl Border for Uncounted {
    fn out(&self) {
        self.counting.set(COUNTING.replace(false));
    }

    fn back(&self) {
        COUNTING.set(self.counting.get());
    }
}

/// Publishes `count` messages to a room of `members` on one shard, one after the other; allocations and bytes allocated for each.
fn publish(members: usize, count: usize, payload: usize) -> (f64, f64) {
    let mut crowd = Crowd::new(1, 1, members, |kernel| Bordered::new(kernel, Uncounted::default()));
    crowd.connect(members, |shards, shard| shards.step(shard));
    (0..200).for_each(|_| crowd.publish(1, payload, |shards, shard| shards.step(shard)));
    let (allocations, bytes) = (ALLOCATIONS.get(), BYTES.get());
    for _ in 0..count {
        crowd.publish(1, payload, |shards, shard| {
            COUNTING.set(true);
            shards.step(shard);
            COUNTING.set(false);
        });
    }
    ((ALLOCATIONS.get() - allocations) as f64 / count as f64, (BYTES.get() - bytes) as f64 / count as f64)
}

#[test]
fn a_delivery_allocates_nothing_and_a_publication_little() {
    let (few, _) = publish(10, 1000, 128);
    let (many, _) = publish(1000, 1000, 128);
    println!("allocations per publication: {few} to 10 members, {many} to 1,000");
    assert!((many - few).abs() * 1000.0 <= 1.0, "{few} allocations per publication to 10 members, {many} to 1,000");
    // What its members are sent, and now and then a segment.
    assert!(many <= 1.1, "{many} allocations per publication");
}

#[test]
fn a_payload_that_comes_in_one_buffer_is_copied_once() {
    let payload = 3 << 10;
    let (_, bytes) = publish(100, 500, payload);
    println!("bytes allocated per publication of {payload}: {bytes}");
    assert!(bytes < payload as f64 * 1.3, "{bytes} bytes allocated for a payload of {payload}");
}
