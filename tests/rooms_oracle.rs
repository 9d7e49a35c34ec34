//! Random joins, leaves and publishes on 2 shards and 50 rooms, against an oracle.
//!
//! Each room has two members that stay from beginning to end, and movers that join, publish and leave by a seeded schedule. What a stayer hears is the
//! order of its room; the oracle then demands:
//! - nothing lost, nothing doubled: the order holds every message that was sent to the room, once;
//! - each sender's messages in the order in which it sent them;
//! - one order: both stayers heard the same;
//! - a mover heard one piece of that order without a hole; if it was still in at the end, the piece reaches the end, and it holds all of
//!   the mover's own messages.

mod common;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::swarm::{End, Event, State, Swarm};
use common::{gateway, seed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const ROOMS: usize = 50;
const STAYERS: usize = 2;
const MOVERS: usize = 100;
const STEPS: usize = 6000;

/// Who sent it, and the how-manieth of that sender it was.
type Message = (u32, u32);

/// What the oracle knows of one connection.
struct Life {
    room: usize,
    sent: u32,
    heard: Vec<Message>,
}

#[test]
fn every_room_has_one_order_that_nobody_misses_a_part_of() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut gateway = gateway().start();
    let mut swarm = Swarm::new(gateway.port);
    let mut lives: Vec<Life> = Vec::new();

    let join = |swarm: &mut Swarm, lives: &mut Vec<Life>, room: usize| {
        let id = swarm.connect(&format!("/ws?room=r{room}"));
        assert_eq!(id, lives.len());
        lives.push(Life { room, sent: 0, heard: Vec::new() });
        id
    };
    for room in 0..ROOMS {
        for _ in 0..STAYERS {
            join(&mut swarm, &mut lives, room);
        }
    }
    let stayers = lives.len();
    swarm.run(common::SOON, "the stayers open", &mut hear(&mut lives), |swarm| swarm.count(&State::Open) == stayers);
    // A stayer is in once it has heard itself; only from then on does it hear everything.
    for id in 0..stayers {
        publish(&mut swarm, &mut lives, id, &mut random);
    }
    let mut known: Vec<bool> = vec![false; stayers];
    let deadline = common::now() + common::SOON;
    while known.iter().any(|known| !known) {
        assert!(common::now() < deadline, "a member never heard its own first message");
        swarm.turn(Duration::from_millis(20), &mut hear(&mut lives));
        for (id, known) in known.iter_mut().enumerate() {
            *known = lives[id].heard.contains(&(id as u32, 0));
        }
    }

    let mut movers: Vec<usize> = Vec::new();
    for _ in 0..STEPS {
        match random.random_range(0..100) {
            0..12 if movers.len() < MOVERS => {
                let room = random.random_range(0..ROOMS);
                movers.push(join(&mut swarm, &mut lives, room));
            }
            12..20 if !movers.is_empty() => {
                let id = movers.swap_remove(random.random_range(0..movers.len()));
                swarm.close(id, 1000);
                if swarm.client(id).state() == &State::Opening {
                    swarm.drop_client(id, false); // it never came in
                }
            }
            _ => {
                let nth = random.random_range(0..stayers + movers.len());
                let id = if nth < stayers { nth } else { movers[nth - stayers] };
                if swarm.client(id).state() == &State::Open {
                    for _ in 0..random.random_range(1..8) {
                        publish(&mut swarm, &mut lives, id, &mut random);
                    }
                }
            }
        }
        // Sometimes nothing is read for a while, so that messages gather and merge.
        if random.random_bool(0.5) {
            swarm.turn(Duration::ZERO, &mut hear(&mut lives));
        }
    }

    let mut sent: Vec<usize> = vec![0; ROOMS];
    for life in &lives {
        sent[life.room] += life.sent as usize;
    }
    let whole = |lives: &[Life]| (0..stayers).all(|id| lives[id].heard.len() >= sent[lives[id].room] - first_messages_before(lives, id));
    let deadline = common::now() + 3 * common::SOON;
    while !whole(&lives) && common::now() < deadline {
        swarm.turn(Duration::from_millis(20), &mut hear(&mut lives));
    }
    // Whatever would come twice comes now; and the movers hear the end.
    let mut before = usize::MAX;
    while before != heard(&lives) {
        before = heard(&lives);
        swarm.run_for(Duration::from_millis(300), &mut hear(&mut lives));
    }
    judge(&swarm, &lives, stayers, &sent);
    println!("{} connections, {} messages sent, {} heard in {ROOMS} rooms", lives.len(), sent.iter().sum::<usize>(), heard(&lives));
    assert!(gateway.alive());
}

fn heard(lives: &[Life]) -> usize {
    lives.iter().map(|life| life.heard.len()).sum()
}

/// Notes what everybody hears.
fn hear(lives: &mut [Life]) -> impl FnMut(usize, Event<'_>) + '_ {
    |id, event| match event {
        Event::Binary(payload) => {
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
            assert_eq!(number(0) as usize, lives[id].room, "a message came to another room");
            lives[id].heard.push((number(4), number(8)));
        }
        Event::Text(_) => panic!("a binary message came as text"),
        _ => {}
    }
}

/// Room, sender, number, and filling of any length.
fn publish(swarm: &mut Swarm, lives: &mut [Life], id: usize, random: &mut StdRng) {
    let life = &mut lives[id];
    let filling = if random.random_bool(0.02) { random.random_range(0..30_000) } else { random.random_range(0..200) };
    let mut payload = vec![0; 12 + filling];
    for (at, number) in [life.room as u32, id as u32, life.sent].into_iter().enumerate() {
        payload[at * 4..at * 4 + 4].copy_from_slice(&number.to_be_bytes());
    }
    life.sent += 1;
    swarm.send_binary(id, &payload);
}

/// The stayers of a room come in one after the other: the first messages of the others may be before this one's time.
fn first_messages_before(lives: &[Life], id: usize) -> usize {
    let own = lives[id].heard.first();
    let room = lives[id].room;
    let other = (room * STAYERS..(room + 1) * STAYERS).filter(|other| *other != id);
    other.filter(|other| own != Some(&(*other as u32, 0)) && !lives[id].heard.contains(&(*other as u32, 0))).count()
}

fn judge(swarm: &Swarm, lives: &[Life], stayers: usize, sent: &[usize]) {
    let mut orders: Vec<&[Message]> = Vec::new();
    for (room, sent) in sent.iter().enumerate() {
        // The stayer that was in first has heard everything.
        let members = room * STAYERS..(room + 1) * STAYERS;
        let order = members.clone().map(|id| &lives[id].heard[..]).max_by_key(|heard| heard.len()).expect("two stayers");
        for id in members {
            assert_eq!(
                swarm.client(id).state(),
                &State::Open,
                "stayer {id} of room {room} lost its connection: {:?}",
                swarm.client(id).end()
            );
            assert!(order.ends_with(&lives[id].heard), "the stayers of room {room} heard different orders");
        }
        let distinct: HashSet<&Message> = order.iter().collect();
        assert_eq!(distinct.len(), order.len(), "room {room}: a message came twice");
        assert_eq!(order.len(), *sent, "room {room}: messages were lost");
        let mut last: HashMap<u32, u32> = HashMap::new();
        for (sender, number) in order {
            let expected = last.get(sender).map_or(0, |last| last + 1);
            assert_eq!(*number, expected, "room {room}: the messages of sender {sender} changed their order");
            last.insert(*sender, *number);
        }
        orders.push(order);
    }
    for (id, life) in lives.iter().enumerate().skip(stayers) {
        let end = swarm.client(id).end();
        assert!(
            matches!(end, None | Some(End::Closed(Some(1000)) | End::Dropped)),
            "mover {id} of room {} lost its connection: {end:?}",
            life.room
        );
        let order = orders[life.room];
        if let Some(first) = life.heard.first() {
            let from = order.iter().position(|message| message == first).expect("the order holds every message");
            let piece = &order[from..];
            assert!(piece.starts_with(&life.heard), "mover {id} of room {} heard a piece with a hole or in another order", life.room);
            if end.is_none() {
                assert_eq!(piece.len(), life.heard.len(), "mover {id} of room {} missed the end", life.room);
            }
        }
        if end.is_none() {
            let own = life.heard.iter().filter(|(sender, _)| *sender as usize == id).count();
            assert_eq!(own, life.sent as usize, "mover {id} of room {} did not hear all that it said itself", life.room);
        }
    }
}
