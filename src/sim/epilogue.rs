//! After everything was said: others come with the newest position of each room, on every transport. They are given what is published from then on, and
//! nothing else; and where nobody else is left, it is said to have been sent to exactly them.

use std::time::Duration;

use super::plan::{Begin, ClientPlan, Epilogue, Leaving, PollerPlan, PosterPlan, READER_ROOMS_MAX, ReaderPlan, Reading, Wish};
use super::{Client, GONE_WITHIN, LET_IN_WITHIN, Poller, Poster, Reader, Simulation};
use crate::engine::sim::LinkOptions;
use crate::ids::ShardId;

/// Until what those who have gone have sent last is in its topics, and every home knows who is there.
const QUIET: Duration = Duration::from_secs(1);

/// Enough for all the histories of a simulation.
const HISTORY_BYTES: u64 = 1 << 28;

impl Simulation {
    pub(super) fn come_back(&mut self) {
        let late = self.plan.epilogue == Epilogue::Late;
        if late {
            // Who has fallen silent is gone for the gateway.
            self.clients.iter_mut().for_each(|client| client.give_up(&self.world));
            self.ledger.nobody_is_there();
            self.scout();
        }
        self.pass(QUIET);
        let (clients, readers, pollers, posters) = (self.clients.len(), self.readers.len(), self.pollers.len(), self.posters.len());
        let gaps = self.ledger.gaps;
        self.newcomers();
        self.run_until(
            LET_IN_WITHIN,
            |me| {
                // Soon, what those who have gone had said may still get its place, crowd out what is kept, and so end who came just then.
                let told = |client: &Client| client.is_open() || (!late && client.is_over());
                me.clients[clients..].iter().all(told) && me.readers[readers..].iter().all(Reader::is_open)
            },
            |me| {
                let clients: Vec<String> = me.clients[clients..].iter().map(|client| me.describe(client)).collect();
                format!("somebody who comes back with the newest position is not let in: {}; {}", clients.join("; "), me.open_reader(""))
            },
        );
        self.pass(QUIET);
        let polls = (self.pollers.len() - pollers) as u64;
        for room in 0..self.plan.rooms {
            let mut poster = self.poster(room);
            // One raw client and one reader; who polls is not there between two requests.
            poster.expects = late.then_some(2..=2 + polls);
            self.posters.push(poster);
        }
        self.run_until(
            LET_IN_WITHIN,
            |me| me.posters[posters..].iter().all(|poster| poster.is_done(&me.ledger)),
            |me| format!("not answered: {}", me.posters[posters..].iter().map(Poster::describe).collect::<Vec<_>>().join("; ")),
        );
        self.settle();
        if late {
            assert!(self.ledger.gaps == gaps, "who comes back with the newest position of a quiet room is told of a gap");
        }
        for (client, poster) in self.clients[clients..].iter().zip(&self.posters[posters..]) {
            let (heard, said) = (client.heard(&self.ledger), poster.said());
            let alone = !late || heard == [said];
            assert!(alone, "{:?} comes back to a quiet room and hears {heard:?} instead of {said:?} alone", client.plan);
        }
        for reader in &self.readers[readers..] {
            let alone = !late || reader.heard == reader.plan.topics().len();
            assert!(alone, "each of its rooms was sent one message: {}", reader.describe());
        }
    }

    /// Has a stream told where each room is, and lets it go. What the last to leave had said may have got its place when nobody listened any more.
    fn scout(&mut self) {
        // A drain that was called off a moment ago must be over on every shard.
        self.pass(QUIET);
        let reader = self.readers.len();
        self.add_reader(Begin::Live);
        self.run_until(LET_IN_WITHIN, |me| me.readers[reader].is_open(), |me| me.open_reader("a stream is not opened"));
        self.readers[reader].finish(&self.world, &mut self.ledger);
        self.run_until(
            GONE_WITHIN,
            |me| me.readers[reader].is_over() && me.is_empty(),
            |me| format!("after a stream has gone: {}", me.leftovers()),
        );
        self.ledger.nobody_is_there();
    }

    fn add_reader(&mut self, begin: Begin) {
        let rooms: [usize; READER_ROOMS_MAX] = std::array::from_fn(|room| room);
        let (rooms_len, link) = (self.plan.rooms.min(READER_ROOMS_MAX), LinkOptions::default());
        let plan = ReaderPlan { rooms, rooms_len, begin, reading: Reading::Greedy, link, lives: 1, cut_after: 0, begins: Duration::ZERO };
        self.readers.push(Reader::new(self.readers.len(), plan, self.plan.epoch(), self.plan.shards.shards));
    }

    fn newcomers(&mut self) {
        let epoch = self.plan.epoch();
        let begin = Begin::After { newest: true };
        for room in 0..self.plan.rooms {
            let plan = ClientPlan {
                wish: Wish::Room(room),
                shard: self.any_shard(),
                no_echo: false,
                begin,
                messages: 0,
                bytes_max: 0,
                reading: Reading::Greedy,
                leaving: Leaving::Stays,
                link: LinkOptions::default(),
                offer: None,
                witness: false,
                begins: Duration::ZERO,
            };
            self.clients.push(Client::new(plan, epoch, &mut self.ledger));
        }
        self.add_reader(begin);
        // Between two polls only a history keeps what comes, for as long as it takes to be let in.
        let limits = &self.plan.shards.limits;
        let age = Duration::from_millis(limits.history_age_ms);
        if limits.history_messages > 0 && limits.history_bytes_max >= HISTORY_BYTES && age >= LET_IN_WITHIN {
            let ReaderPlan { rooms, rooms_len, link, begins, .. } = self.readers.last().expect("added above").plan;
            let plan = PollerPlan { rooms, rooms_len, begin, wait: Duration::from_secs(25), limit: None, breaks: 0, link, begins };
            self.pollers.push(Poller::new(self.pollers.len(), plan, epoch, self.plan.shards.shards));
        }
    }

    fn poster(&mut self, room: usize) -> Poster {
        let (shard, link) = (self.any_shard(), LinkOptions::default());
        let (keys, repeats, begins) = (false, false, Duration::ZERO);
        let plan = PosterPlan { room, shard, messages: 1, bytes_max: 200, ack: "sent", keys, repeats, values: false, link, begins };
        Poster::new(plan, self.plan.epoch(), &mut self.ledger)
    }

    fn any_shard(&mut self) -> ShardId {
        ShardId(self.world.borrow_mut().choices.below(self.plan.shards.shards.into()) as u16)
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.turn();
        }
    }
}
