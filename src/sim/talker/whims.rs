//! What a client of `shardcast.v1.json` does besides: it lets go of topics, asks for histories, who is there and signs of life, and for what cannot be.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::ledger::{Ledger, Loss};
use super::super::shards::Features;
use super::super::words::{Told, payload, room_of};
use super::{Talker, What};
use crate::engine::sim::World;
use crate::proto::position::Position;
use crate::time::Time;

impl Talker {
    /// Does one of these.
    pub(super) fn follow_whim(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let (whim, number) = {
            let choices = &mut world.borrow_mut().choices;
            (choices.below(10), choices.below(self.places.len()))
        };
        let (wild, asked_wild) = self.life.as_ref().map_or((false, false), |life| (life.is_wild, life.asked_wild));
        let place = &self.places[number];
        let room = place.room;
        match whim {
            0..=2 if place.is_in && !place.asked && !asked_wild => {
                self.places[number].asked = true;
                self.ask(What::Unsubscribe { place: number }, &format!("\"type\":\"unsubscribe\",\"topic\":\"room-{room}\""), world);
            }
            3 | 4 => self.ask_for_history(room, world, ledger),
            5 => self.ask(What::Ping, "\"type\":\"ping\"", world),
            6 if !asked_wild => self.err(number, world),
            8 if wild && !asked_wild && !self.places.iter().any(|place| place.asked) => {
                self.life.iter_mut().for_each(|life| life.asked_wild = true);
                self.ask(What::NoPattern, "\"type\":\"unsubscribe\",\"pattern\":\"room-*\"", world);
            }
            9 if self.about.features.presence => {
                self.ask(What::Presence, &format!("\"type\":\"presence\",\"topic\":\"room-{room}\""), world);
            }
            7 if self.may_leave() && !self.has_blundered => {
                self.has_blundered = true;
                let nonsense =
                    world.borrow_mut().choices.of(&["", "nonsense", "[1,2]", "{\"id\":1}", "{\"type\":\"ping\",\"type\":\"ping\"}"]);
                self.say(nonsense.to_owned(), world);
            }
            _ => self.ask(What::Auth, "\"type\":\"auth\",\"token\":\"any\",\"batch\":[1,{}]", world),
        }
    }

    fn ask_for_history(&mut self, room: usize, world: &Rc<RefCell<World>>, ledger: &Ledger) {
        let mut drawn = world.borrow_mut();
        let choices = &mut drawn.choices;
        let newest = ledger.newest(room);
        let (mut after, mut last, mut fields) = (None, u64::MAX, format!("\"type\":\"history\",\"topic\":\"room-{room}\""));
        match choices.below(3) {
            0 => {
                let position = Position { epoch: self.epoch, offset: ledger.known_offset(room, false, choices) };
                fields += &format!(",\"after\":\"{position}\"");
                after = Some(position);
            }
            1 => {
                last = choices.of(&[1, 3, 1000]);
                fields += &format!(",\"last\":{last}");
            }
            _ => {}
        }
        let most = choices.of(&[None, None, Some(1), Some(5)]);
        if let Some(most) = most {
            fields += &format!(",\"limit\":{most}");
        }
        drop(drawn);
        self.ask(What::History { room, after, most, newest, last }, &fields, world);
    }

    /// Asks for what cannot be.
    fn err(&mut self, number: usize, world: &Rc<RefCell<World>>) {
        let place = &self.places[number];
        let topic = format!("\"topic\":\"room-{}\"", place.room);
        let subscribed = if place.is_in { "already_subscribed" } else { "not_subscribed" };
        let kind = if place.is_in { "subscribe" } else { "unsubscribe" };
        let mistakes = [
            ("not_subscribed", "\"type\":\"unsubscribe\",\"pattern\":\"nothing-*\"".to_owned()),
            ("bad_request", "\"type\":\"subscribe\"".to_owned()),
            ("bad_request", format!("\"type\":\"subscribe\",{topic},\"last\":-1")),
            ("bad_request", format!("\"type\":\"publish\",{topic}")),
            ("unknown_type", format!("\"type\":\"dance\",{topic}")),
            ("no_wildcards", "\"type\":\"subscribe\",\"pattern\":\"room-*\"".to_owned()),
            ("no_presence", format!("\"type\":\"presence\",{topic}")),
            (subscribed, format!("\"type\":\"{kind}\",{topic}")),
        ];
        // What is allowed is no mistake, nor is what may be so when it is heard.
        let Features { presence, wildcards, .. } = self.about.features;
        let moves = place.asked || (self.plan.wild && !place.is_in);
        let is_one = |(code, _): &&(&'static str, String)| match *code {
            "no_wildcards" => !wildcards,
            "no_presence" => !presence,
            code if code == subscribed => !moves,
            _ => true,
        };
        let mistakes: Vec<&(&'static str, String)> = mistakes.iter().filter(is_one).collect();
        let (code, fields) = mistakes[world.borrow_mut().choices.below(mistakes.len())];
        self.ask(What::Mistake(code), fields, world);
    }

    /// Takes the answer to a request for a history.
    pub(super) fn read_history(&mut self, asked: &What, told: &Told<'_>, text: &str, now: Time, ledger: &mut Ledger) {
        let who = format!("talker {}", self.id);
        let &What::History { room, after, most, newest, last } = asked else { return };
        let read = |pos: Option<&str>| -> Position {
            let position = pos.and_then(|pos| Position::parse(pos).ok()).filter(|position| position.epoch == self.epoch);
            position.unwrap_or_else(|| panic!("{who}: no position of this epoch in {text}"))
        };
        assert!(told.room() == Some(room), "{who}: has asked for the history of room {room}: {text}");
        let (mut at, mut messages) = (after.map(|after| after.offset), 0);
        for entry in &told.messages {
            assert!(room_of(entry.topic) == Some(room), "{who}: the history of room {room} has another's message: {text}");
            if let Some(gap) = &entry.gap {
                let (from, to) = (gap.from.map(|from| read(Some(from))), read(Some(gap.to)));
                let fits = from == after && at.is_some_and(|at| at < to.offset) && gap.reason == "too_old" && ledger.record.is_none();
                assert!(fits && messages == 0, "{who}: reads of a gap: {text}");
                ledger.lose(Loss::new(room, to.offset, now, format!("{who} reads of a gap to {to} in the history of room {room}")));
                at = Some(to.offset);
                continue;
            }
            let offset = read(entry.pos).offset;
            let (is_text, payload) =
                payload(entry.data.as_deref(), entry.data_b64).unwrap_or_else(|| panic!("{who}: what is this: {text}"));
            match at {
                Some(at) => {
                    assert!(ledger.is_next(None, room, at, offset), "{who}: reads {offset} behind {at} in the history of room {room}")
                }
                None => ledger.lose(Loss::new(room, offset - 1, now, format!("{who} reads room {room} from {offset} on")).of_at_most(last)),
            }
            ledger.read(&who, room, offset, is_text, &payload);
            (at, messages) = (Some(offset), messages + 1);
        }
        assert!(most.is_none_or(|most| messages <= most), "{who}: has asked for {most:?} messages: {text}");
        let next = read(told.next).offset;
        assert!(
            at.is_none_or(|at| at == next || (ledger.record.is_some() && ledger.is_next(None, room, at, next + 1))),
            "{who}: next is wrong: {text}"
        );
        // What the gateway has not read of a stream it does not have, and another shard may not have been sent the newest.
        let awaited = newest.filter(|_| after.is_some() && ledger.record.is_none() && self.about.shards == 1);
        assert!(messages > 0 || awaited <= at, "{who}: reads nothing after {at:?}, and there was {newest:?}: {text}");
    }
}
