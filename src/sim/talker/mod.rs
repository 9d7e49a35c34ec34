//! A simulated client of `shardcast.v1.json`: it subscribes to one to four topics, lets go of them and takes them up again, publishes, asks for histories and
//! for nonsense, and is cut off now and then, to come back with the position of each topic.

mod voice;
mod whims;

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use self::voice::Voices;
use super::SERVED_WITHIN;
use super::client::CUT_OFF;
use super::ears::{Ears, ToldGap};
use super::ledger::{Ledger, Said};
use super::plan::{Begin, Reading, TalkerPlan, draw_begin};
use super::reader::Cut;
use super::shards::Features;
use super::socket::{self, Ended, Heard, Shaken, Shaking, Socket};
use super::words::Told;
use crate::engine::sim::{LinkId, World};
use crate::ids::ShardId;
use crate::proto::position::{Epoch, Position};
use crate::time::Time;

const PROTOCOL: &str = "shardcast.v1.json";
/// Requests that are on their way at once at most, besides messages.
const ASKED_MAX: usize = 4;
/// How often it lets itself be refused a topic, or be turned away.
const REFUSALS_MAX: usize = 5;
/// What an answer may take longer for each byte that may be in front of it: buffers may be tiny.
const BYTE: Duration = Duration::from_micros(50);

enum Wire {
    Shaking(Shaking),
    Open(Socket),
    Over,
}

/// One connection.
struct Life {
    link: LinkId,
    wire: Wire,
    welcomed: bool,
    /// It has asked for many messages as one frame.
    greeted: bool,
    /// It is subscribed to all rooms; it has asked for the one or the other.
    is_wild: bool,
    asked_wild: bool,
    /// Requests that are not answered, in the order in which they will be.
    asked: VecDeque<Asked>,
    bye: Option<u16>,
    /// The server's close frame has come, or its own is on the way.
    closing: bool,
    /// Messages heard in it.
    heard: usize,
}

struct Asked {
    id: u64,
    at: Time,
    what: What,
}

/// What it has asked for, besides publishing.
#[derive(Debug)]
enum What {
    /// A topic, by its place among its own; it comes with this position.
    Subscribe {
        place: usize,
        after: Option<Position>,
    },
    Unsubscribe {
        place: usize,
    },
    /// With the newest offset of it that anybody knew of then.
    History {
        room: usize,
        after: Option<Position>,
        most: Option<u64>,
        newest: Option<u64>,
        last: u64,
    },
    /// All rooms; or no more of them.
    Pattern,
    NoPattern,
    Presence,
    Ping,
    Auth,
    /// What is refused, with this code.
    Mistake(&'static str),
}

/// What is to be known of the simulation.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub(super) shards: u16,
    pub(super) rooms: usize,
    pub(super) harsh: bool,
    pub(super) features: Features,
    /// Somebody is in each room from the beginning to the end.
    pub(super) all_are_there: bool,
}

/// A topic of its.
struct Place {
    room: usize,
    ears: Ears,
    /// It was told that it is subscribed, and not that it is no more.
    is_in: bool,
    /// It has asked for one or the other.
    asked: bool,
    /// What follows begins behind this position, and a gap comes before it.
    gap_to: Option<Position>,
    /// It has heard nothing since it was told where it begins; whether it had said so itself, and nothing is missing.
    fresh: Option<bool>,
    /// All rooms were asked for, and so it was brought.
    by_pattern: bool,
    /// Who is in it, as it was told; none while it was not.
    roster: Option<BTreeSet<String>>,
    refusals_left: usize,
}

/// One of them.
pub(super) struct Talker {
    pub(super) plan: TalkerPlan,
    id: usize,
    epoch: Epoch,
    life: Option<Life>,
    over: bool,
    /// Connections so far.
    pub(super) lives: usize,
    pub(super) next_at: Time,
    places: Vec<Place>,
    voices: Voices,
    /// Requests so far, of all lives.
    requests: u64,
    whims_left: usize,
    /// What the gateway has called its connections, the present one last.
    conns: Vec<String>,
    about: About,
    /// How its last life ended.
    pub(super) cut: Option<Cut>,
    /// It was told that NATS is not there when it was.
    pub(super) cut_off: bool,
    /// It has said what is no request.
    pub(super) has_blundered: bool,
    /// It does not come back any more.
    last_life: bool,
    /// Messages over all its lives.
    pub(super) heard: usize,
}

impl Talker {
    pub(super) fn new(id: usize, plan: TalkerPlan, epoch: Epoch, about: About, ledger: &mut Ledger) -> Self {
        let place = |&room: &usize| Place {
            room,
            ears: Ears::new(format!("talker {id}"), &[room], plan.reader.begin, epoch),
            is_in: false,
            asked: false,
            gap_to: None,
            fresh: None,
            by_pattern: false,
            roster: None,
            refusals_left: REFUSALS_MAX,
        };
        Self {
            plan,
            id,
            epoch,
            life: None,
            over: false,
            lives: 0,
            next_at: Time::ZERO,
            places: plan.reader.topics().iter().map(place).collect(),
            voices: Voices::new(plan, format!("talker {id}"), epoch, (about.rooms, about.harsh), ledger),
            requests: 0,
            whims_left: plan.whims,
            conns: Vec::new(),
            about,
            cut: None,
            cut_off: false,
            has_blundered: false,
            last_life: false,
            heard: 0,
        }
    }

    /// Whether it has gone for good.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Messages that were published again.
    pub(super) fn repeats(&self) -> u64 {
        self.voices.repeats
    }

    /// Whether it has said all that it has to say, and has all of its topics; or never will.
    pub(super) fn is_done(&self) -> bool {
        self.over || self.plan.reader.reading != Reading::Greedy || (self.voices.are_done() && self.is_settled())
    }

    fn is_settled(&self) -> bool {
        let placed = |place: &Place| {
            let may_be_out = place.refusals_left == 0 || (!self.is_asked_by_name(place) && !self.about.all_are_there);
            !place.asked && (place.is_in || may_be_out)
        };
        let answered = |life: &Life| life.is_open() && life.asked.is_empty() && (life.is_wild || !self.plan.wild);
        self.life.as_ref().is_some_and(answered) && self.places.iter().all(placed)
    }

    /// Whether it is for itself to ask for a room: none that comes with all others.
    fn is_asked_by_name(&self, place: &Place) -> bool {
        !self.plan.wild || place.ears.place(0).is_some()
    }

    /// Whether the gateway may end its connection, or not let it in, without a reason that lies in the gateway.
    pub(super) fn is_excused(&self) -> bool {
        self.plan.reader.link.fragile || self.plan.reader.reading != Reading::Greedy || self.cut == Some(Cut::Left)
    }

    /// When it does something next. The answer to its handshake it reads at once.
    pub(super) fn due(&self, world: &World) -> Option<Time> {
        match &self.life {
            _ if self.over => None,
            Some(Life { wire: Wire::Shaking(_), link, .. }) if world.readable(*link) > 0 => Some(Time::ZERO),
            _ => Some(self.next_at),
        }
    }

    /// It follows no more whims: what it has asked for it waits for, and takes its topics up again.
    pub(super) fn calm_down(&mut self) {
        self.whims_left = 0;
    }

    /// Does the next thing. In a gentle world (`served`) every request is answered in time.
    pub(super) fn act(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let micros = match self.plan.reader.reading {
            Reading::Greedy => world.borrow_mut().choices.within(0..=1500),
            _ => world.borrow_mut().choices.within(5_000..=60_000),
        };
        let now = world.borrow().now;
        self.next_at = now + Duration::from_micros(micros as u64);
        let Some(life) = &mut self.life else { return self.connect(world, ledger) };
        match std::mem::replace(&mut life.wire, Wire::Over) {
            Wire::Shaking(shaking) => {
                let shaken = shaking.go_on(format_args!("talker {}", self.id));
                self.shaken(shaken, world, ledger);
            }
            Wire::Open(mut socket) => {
                socket.flush();
                life.wire = Wire::Open(socket);
                self.listen(world, ledger, served);
                self.check_patience(now, ledger, served);
                self.talk(world, ledger);
            }
            Wire::Over => {}
        }
        self.tell(ledger);
    }

    /// What the oracle may rely on.
    fn tell(&self, ledger: &mut Ledger) {
        let life = self.life.as_ref().filter(|life| life.is_open() && self.plan.reader.reading == Reading::Greedy);
        for (number, place) in self.places.iter().enumerate() {
            let leaves = |asked: &Asked| matches!(asked.what, What::Unsubscribe { place } if place == number);
            let listens = place.is_in && place.gap_to.is_none() && life.is_some_and(|life| !life.asked.iter().any(leaves));
            place.ears.tell(listens, ledger);
        }
        self.voices.tell(ledger);
    }

    fn connect(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let shard = ShardId(world.borrow_mut().choices.below(self.about.shards.into()) as u16);
        let Ok(link) = world.borrow_mut().connect(shard, self.plan.reader.link) else {
            self.over = true;
            return;
        };
        self.lives += 1;
        let (wire, asked) = (Wire::Over, VecDeque::new());
        self.life = Some(Life {
            link,
            wire,
            welcomed: false,
            greeted: false,
            is_wild: false,
            asked_wild: false,
            asked,
            bye: None,
            closing: false,
            heard: 0,
        });
        let shaken = socket::ask(world, link, "/ws", (Some(PROTOCOL), self.plan.offer), format_args!("talker {}", self.id));
        self.shaken(shaken, world, ledger);
    }

    fn shaken(&mut self, shaken: Shaken, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let Some(life) = &mut self.life else { return };
        match shaken {
            Shaken::Open(socket) => life.wire = Wire::Open(socket),
            Shaken::Waits(shaking) => life.wire = Wire::Shaking(shaking),
            Shaken::Failed(Ended::Refused(status)) => self.end_life(Cut::Refused(status), world, ledger),
            Shaken::Failed(_) => self.end_life(Cut::Broken, world, ledger),
        }
    }

    // ---- what it hears ------------------------------------------------------------------------------------------------------------

    fn listen(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let most = match self.plan.reader.reading {
            Reading::Greedy => usize::MAX,
            Reading::Slow => 2,
            Reading::DeafAfter(count) => usize::from(self.heard < count),
        };
        for _ in 0..most {
            let Some(life) = &mut self.life else { return };
            let Wire::Open(socket) = &mut life.wire else { return };
            let heard = socket.read(format_args!("talker {}", self.id));
            match heard {
                Heard::Text(text) => self.hear_lines(&text, world, ledger, served),
                Heard::Binary(_) => panic!("talker {}: is sent a binary message", self.id),
                Heard::Close(code) => {
                    let ours = std::mem::replace(&mut life.closing, true);
                    assert!(
                        life.bye == code || (ours && life.bye.is_none()),
                        "talker {}: closed with {code:?} after {:?}",
                        self.id,
                        life.bye
                    );
                }
                Heard::Sign => {}
                Heard::Nothing => return,
                Heard::Ended(_) => {
                    let closed = if life.closing { Cut::Left } else { Cut::Broken };
                    let cut = life.bye.map_or(closed, Cut::Bye);
                    return self.end_life(cut, world, ledger);
                }
            }
            if self.may_leave() && self.life.as_ref().is_some_and(|life| life.heard >= self.plan.reader.cut_after && life.welcomed) {
                // Cut here, whatever has come behind it.
                return self.leave(world, ledger);
            }
        }
    }

    fn may_leave(&self) -> bool {
        !self.last_life && self.lives < self.plan.reader.lives
    }

    /// Takes a frame: one object, or where it was asked for several, each followed by a line break.
    fn hear_lines(&mut self, text: &str, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let whole = !text.contains('\n') || (self.plan.batches && text.ends_with('\n'));
        assert!(whole, "talker {}: no lines of objects: {text}", self.id);
        for line in lines {
            self.hear(line, world, ledger, served);
        }
    }

    fn hear(&mut self, text: &str, world: &Rc<RefCell<World>>, ledger: &mut Ledger, served: bool) {
        let id = self.id;
        tracing::debug!(talker = id, text, "hears");
        let told = Told::read(text).unwrap_or_else(|error| panic!("talker {id}: {error}: {text}"));
        let now = world.borrow().now;
        let Some(life) = &mut self.life else { return };
        assert!(life.bye.is_none(), "talker {id}: after goodbye: {text}");
        assert!(life.welcomed != (told.kind == "welcome"), "talker {id}: not welcomed first, or twice: {text}");
        match told.kind {
            "welcome" => {
                life.welcomed = true;
                self.conns.extend(told.conn);
            }
            "bye" => life.bye = Some(told.code().parse().unwrap_or_else(|_| panic!("talker {id}: goodbye without a code: {text}"))),
            // All are to spread their return over longer.
            "retry" => assert!(told.retry_ms.is_some(), "talker {id}: {text}"),
            "message" => self.hear_message(&told, text, ledger),
            "gap" => self.hear_gap(&told, text, now, ledger),
            "presence" | "join" | "leave" if told.id.is_none() => self.hear_of_others(&told, text),
            "subscribed" if told.id.is_none() => self.is_brought(&told, text, now, ledger),
            "error" if told.id.is_none() => self.is_not_brought(&told, text, now, ledger, served),
            "ok" if told.pos.is_some() => self.voices.are_answered(&told, &mut world.borrow_mut(), ledger),
            "error" if told.id().contains('.') => self.voices.are_refused(&told, now, served, ledger),
            _ => self.take_answer(&told, text, now, ledger, served),
        }
    }

    fn place_of(&mut self, told: &Told<'_>, text: &str) -> &mut Place {
        let (id, room) = (self.id, told.room());
        let place = self.places.iter_mut().find(|place| Some(place.room) == room && place.is_in);
        place.unwrap_or_else(|| panic!("talker {id}: hears of a topic that it is not subscribed to: {text}"))
    }

    fn hear_message(&mut self, told: &Told<'_>, text: &str, ledger: &mut Ledger) {
        let (id, epoch) = (self.id, self.epoch);
        let (is_text, payload) = told.payload().unwrap_or_else(|| panic!("talker {id}: neither text nor bytes: {text}"));
        let place = self.place_of(told, text);
        let position = place.ears.read_position(told.pos.unwrap_or_default());
        assert!(position.epoch == epoch, "talker {id}: another epoch: {text}");
        assert!(place.gap_to.is_none(), "talker {id}: was told that its position is not gone on from, and of no gap: {text}");
        place.fresh = None;
        place.ears.hear(0, position.offset, is_text, &payload, ledger);
        let key = ledger.key_of(ledger.identify(id, &payload)).map(|key| format!("k{key}"));
        assert!(key.as_deref() == told.key, "talker {id}: said with the key {key:?}: {text}");
        self.heard += 1;
        self.life.iter_mut().for_each(|life| life.heard += 1);
    }

    fn hear_gap(&mut self, told: &Told<'_>, text: &str, now: Time, ledger: &mut Ledger) {
        let (id, epoch) = (self.id, self.epoch);
        let place = self.place_of(told, text);
        let read = |pos: Option<&str>| pos.map(|pos| place.ears.read_position(pos));
        let (from, until) = (read(told.from), read(told.until));
        let to = read(told.to).unwrap_or_else(|| panic!("talker {id}: a gap to nowhere: {text}"));
        let gap = ToldGap { room: place.room, from, to, until, reason: told.reason.as_deref().unwrap_or_default() };
        let here = from.filter(|from| from.epoch == epoch).map_or(to.offset, |from| from.offset);
        match (place.gap_to.take(), place.fresh.take()) {
            (Some(position), _) => {
                assert!(position == to, "talker {id}: is to go on at {position}: {text}");
                place.ears.begins(0, here, now, ledger);
            }
            (None, Some(true)) if gap.reason != "slow" => panic!("talker {id}: was told that nothing is missing: {text}"),
            // It did not say where it was; what it was to begin with has become too old meanwhile.
            (None, Some(false)) if gap.reason != "slow" && place.ears.place(0) == Some(to) => place.ears.begin_again_at(0, here),
            _ => {}
        }
        place.ears.gap(&gap, now, ledger);
        let room = gap.room;
        let unwanted = self.voices.unwanted(room);
        let place = self.places.iter_mut().find(|place| place.room == room);
        place.into_iter().for_each(|place| place.ears.is_another(0, unwanted, ledger));
    }

    /// Takes the answer to what was asked first.
    fn take_answer(&mut self, told: &Told<'_>, text: &str, now: Time, ledger: &mut Ledger, served: bool) {
        let id = self.id;
        let Some(life) = &mut self.life else { return };
        let asked = life.asked.pop_front().unwrap_or_else(|| panic!("talker {id}: is answered, and has asked for nothing: {text}"));
        assert!(told.id() == asked.id.to_string(), "talker {id}: is answered {text} and has asked for {:?} with {}", asked.what, asked.id);
        match (&asked.what, told.kind) {
            (&What::Subscribe { place, after }, "subscribed") => self.subscribed(place, after, told, text, now, ledger),
            (&What::Unsubscribe { place }, "ok") => {
                let place = &mut self.places[place];
                place.leave();
            }
            (What::Pattern, "ok") => (life.is_wild, life.asked_wild) = (true, false),
            (What::NoPattern, "ok") => {
                (life.is_wild, life.asked_wild) = (false, false);
                self.places.iter_mut().filter(|place| place.by_pattern).for_each(Place::leave);
            }
            (What::Presence, "presence") => {
                assert!(told.count.is_some_and(|count| count == told.members.len() as u64), "talker {id}: {text}")
            }
            (What::History { .. }, "history") => self.read_history(&asked.what, told, text, now, ledger),
            (What::Ping, "pong") | (What::Auth, "ok") => {}
            (What::Mistake(code), "error") => assert!(told.code() == *code, "talker {id}: {code} is called {text}"),
            // All rooms have brought it meanwhile.
            (&What::Subscribe { place, .. }, "error") if told.code() == "already_subscribed" && self.places[place].by_pattern => {
                self.places[place].asked = false;
            }
            (&What::Subscribe { place, .. }, "error") => {
                self.check_refusal(told, text, now, ledger, served);
                let excused = ledger.excuses(now);
                let place = &mut self.places[place];
                place.asked = false;
                place.refusals_left = place.refusals_left.saturating_sub(usize::from(!excused));
            }
            (What::History { .. }, "error") => self.check_refusal(told, text, now, ledger, served),
            _ => panic!("talker {id}: has asked for {:?} and is answered {text}", asked.what),
        }
    }

    fn check_refusal(&self, told: &Told<'_>, text: &str, now: Time, ledger: &Ledger, served: bool) {
        let full = matches!(told.code(), "over_capacity" | "topic_full" | "nats_unavailable");
        assert!(full && told.retry_ms.is_some() && (!served || ledger.excuses(now)), "talker {}: is refused: {text}", self.id);
    }

    fn subscribed(&mut self, place: usize, after: Option<Position>, told: &Told<'_>, text: &str, now: Time, ledger: &mut Ledger) {
        let id = self.id;
        let place = &mut self.places[place];
        (place.is_in, place.asked, place.by_pattern) = (true, false, false);
        let position = place.ears.read_position(told.pos.unwrap_or_default());
        assert!(told.room() == Some(place.room) && position.epoch == self.epoch, "talker {id}: subscribes to room {}: {text}", place.room);
        let recovered = told.recovered.unwrap_or_else(|| panic!("talker {id}: recovered or not: {text}"));
        assert!(!recovered || after.is_some(), "talker {id}: has come with no position: {text}");
        assert!(told.replayed.is_some() || ledger.record.is_some(), "talker {id}: is not told how many messages follow: {text}");
        if after.is_some() && !recovered {
            place.gap_to = Some(position);
        } else {
            // What it does not want back may have been all that there was: then a gap may follow.
            place.fresh = Some(recovered && self.voices.unwanted(place.room).is_empty());
            place.ears.begins(0, position.offset, now, ledger);
        }
        place.ears.is_another(0, self.voices.unwanted(place.room), ledger);
        let (follow, said) = (told.replayed.unwrap_or(0), ledger.said_in(place.room));
        assert!(ledger.record.is_some() || position.offset + follow <= said, "talker {id}: {said} messages were said: {text}");
    }

    /// It is subscribed to a room because it has asked for all.
    fn is_brought(&mut self, told: &Told<'_>, text: &str, now: Time, ledger: &mut Ledger) {
        let (id, room) = (self.id, told.room());
        let wild = self.life.as_ref().is_some_and(|life| life.is_wild || life.asked_wild);
        let place = self.places.iter_mut().find(|place| Some(place.room) == room && !place.is_in && wild);
        let place = place.unwrap_or_else(|| panic!("talker {id}: has not asked for it: {text}"));
        let position = place.ears.read_position(told.pos.unwrap_or_default());
        assert!(position.epoch == self.epoch, "talker {id}: another epoch: {text}");
        (place.is_in, place.by_pattern) = (true, true);
        place.fresh = Some(told.recovered == Some(true) && self.voices.unwanted(place.room).is_empty());
        place.ears.begin_anew(Begin::Live, ledger);
        place.ears.begins(0, position.offset, now, ledger);
        place.ears.is_another(0, self.voices.unwanted(place.room), ledger);
    }

    /// A room that comes with all others does not come.
    fn is_not_brought(&self, told: &Told<'_>, text: &str, now: Time, ledger: &Ledger, served: bool) {
        assert!(self.plan.wild, "talker {}: has asked for nothing: {text}", self.id);
        self.check_refusal(told, text, now, ledger, served);
    }

    /// It is told who is in a room, has come, or has gone.
    fn hear_of_others(&mut self, told: &Told<'_>, text: &str) {
        let (id, watches) = (self.id, self.plan.watches);
        let place = self.place_of(told, text);
        let members = told.members.iter().map(|member| member.conn.clone());
        assert!(watches, "talker {id}: does not want to know: {text}");
        let roster = match (&mut place.roster, told.kind) {
            (Some(roster), _) => roster,
            (none, "presence") => none.insert(BTreeSet::new()),
            // What others are told before it was is in what it is told then.
            _ => return,
        };
        match told.kind {
            "presence" => *roster = members.collect(),
            "join" => roster.extend(members),
            _ => members.for_each(|gone| {
                roster.remove(&gone);
            }),
        }
        let count = told.count.unwrap_or_default();
        let behind = told.kind == "leave" && (roster.len() as u64) < count;
        assert!(roster.len() as u64 == count || behind, "talker {id}: knows of {roster:?}: {text}");
    }

    /// Something that it was told of who is in its rooms and is not so, of clients that speak as it does.
    pub(super) fn wrong_about(&self, others: &[Self]) -> Option<String> {
        let reads = |talker: &Self| talker.plan.reader.reading == Reading::Greedy && talker.life.as_ref().is_some_and(Life::is_open);
        for place in self.places.iter().filter(|place| place.is_in && reads(self) && self.plan.watches && !place.by_pattern) {
            let Some(roster) = &place.roster else {
                return Some(format!("{} was not told who is in room {}", self.describe(), place.room));
            };
            for other in others.iter().filter(|other| other.over || reads(other)) {
                let is_in = !other.over && other.places.iter().any(|theirs| theirs.room == place.room && theirs.is_in);
                let (present, past) = match other.conns.split_last() {
                    Some((present, past)) if !other.over => (Some(present), past),
                    _ => (None, &other.conns[..]),
                };
                if present.is_some_and(|conn| roster.contains(conn) != is_in) || past.iter().any(|conn| roster.contains(conn)) {
                    return Some(format!("{} was told of {roster:?} in room {}, and {}", self.describe(), place.room, other.describe()));
                }
            }
        }
        None
    }

    // ---- what it says -------------------------------------------------------------------------------------------------------------

    /// Whatever was asked long ago must have been answered.
    fn check_patience(&self, now: Time, ledger: &Ledger, served: bool) {
        if !served || self.plan.reader.link.fragile || self.plan.reader.reading != Reading::Greedy {
            return;
        }
        let Some(life) = self.life.as_ref().filter(|life| life.is_open()) else { return };
        let patience = SERVED_WITHIN + BYTE * ledger.bytes_to_deliver().min(1 << 20) as u32;
        let late = life.asked.front().filter(|asked| now.since(asked.at) > patience);
        assert!(late.is_none(), "{} has asked for {:?} more than {patience:?} ago", self.describe(), late.map(|asked| &asked.what));
        let late = self.voices.unanswered_since(Time::from_nanos(now.as_nanos().saturating_sub(patience.as_nanos() as u64)));
        assert!(late.is_none(), "{} has said {late:?} more than {patience:?} ago", self.describe());
    }

    fn talk(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let Some(life) = self.life.as_ref().filter(|life| life.is_open()) else { return };
        if self.plan.batches && !life.greeted {
            self.life.iter_mut().for_each(|life| life.greeted = true);
            return self.say("{\"type\":\"hello\",\"batch\":true}".to_owned(), world);
        }
        let (asked, speaks, whim) = {
            let choices = &mut world.borrow_mut().choices;
            (life.asked.len(), choices.chance(400), self.whims_left > 0 && choices.chance(100))
        };
        if asked < ASKED_MAX {
            let out = |place: &Place| !place.is_in && !place.asked && place.refusals_left > 0 && self.is_asked_by_name(place);
            let wild = self.plan.wild && !life.is_wild && !life.asked_wild && !self.places.iter().any(|place| place.asked || out(place));
            let next = self.places.iter().position(out).filter(|_| world.borrow_mut().choices.chance(500));
            if let Some(place) = next {
                self.subscribe(place, world, ledger);
            }
            if wild {
                self.life.iter_mut().for_each(|life| life.asked_wild = true);
                self.places.iter().for_each(|place| ledger.visit(place.room));
                self.ask(What::Pattern, "\"type\":\"subscribe\",\"pattern\":\"room-*\"", world);
            }
            if whim {
                self.whims_left -= 1;
                self.follow_whim(world, ledger);
            }
        }
        if speaks {
            let count = world.borrow_mut().choices.of(&[1, 1, 3]);
            for _ in 0..count {
                let Some((request, mute)) = self.voices.speak(world, ledger) else { return };
                if let Some((room, id)) = mute {
                    let place = self.places.iter().find(|place| place.room == room && place.is_in);
                    place.into_iter().for_each(|place| place.ears.does_not_want(0, id, ledger));
                }
                self.say(request, world);
            }
        }
    }

    fn say(&mut self, text: String, world: &Rc<RefCell<World>>) {
        tracing::debug!(talker = self.id, text, "says");
        let fragments = world.borrow_mut().choices.of(&[1, 1, 1, 1, 2, 5]);
        if let Some(Life { wire: Wire::Open(socket), .. }) = &mut self.life {
            socket.say(&Said { text: true, payload: text.into_bytes() }, fragments);
        }
    }

    /// Asks for something: `fields` is the request but for its braces and its id.
    fn ask(&mut self, what: What, fields: &str, world: &Rc<RefCell<World>>) {
        let (id, at) = (self.requests, world.borrow().now);
        self.requests += 1;
        // An id is a number or a string.
        let quote = if id.is_multiple_of(2) { "" } else { "\"" };
        self.say(format!("{{{fields},\"id\":{quote}{id}{quote}}}"), world);
        if let Some(life) = &mut self.life {
            life.asked.push_back(Asked { id, at, what });
        }
    }

    fn subscribe(&mut self, number: usize, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        let place = &mut self.places[number];
        place.asked = true;
        ledger.visit(place.room);
        let anew = place.ears.place(0).is_none() || world.borrow_mut().choices.chance(200);
        let (begin, after) = match place.ears.place(0).filter(|_| !anew) {
            Some(position) => (Some(("after", position.to_string())), Some(position)),
            None => {
                let choices = &mut world.borrow_mut().choices;
                let begin = if self.lives == 1 { self.plan.reader.begin } else { draw_begin(choices) };
                place.ears.begin_anew(begin, ledger);
                let begin = place.ears.begin(ledger, choices);
                let after = begin.as_ref().filter(|(name, _)| *name == "after").and_then(|(_, value)| Position::parse(value).ok());
                (begin, after)
            }
        };
        let begin = match begin {
            None => String::new(),
            Some(("last", count)) => format!(",\"last\":{count}"),
            Some((name, value)) => format!(",\"{name}\":\"{value}\""),
        };
        let presence = if self.plan.watches { ",\"presence\":true" } else { "" };
        let fields = format!("\"type\":\"subscribe\",\"topic\":\"room-{}\"{begin}{presence}", place.room);
        self.ask(What::Subscribe { place: number, after }, &fields, world);
    }

    // ---- its ends -----------------------------------------------------------------------------------------------------------------

    /// Breaks its connection off, and comes back unless it has done so often enough.
    fn leave(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        if let Some(life) = self.life.as_ref().filter(|_| world.borrow_mut().choices.chance(500)) {
            world.borrow_mut().client_reset(life.link);
        }
        self.end_life(Cut::Left, world, ledger);
    }

    fn end_life(&mut self, cut: Cut, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        if let Some(life) = self.life.take() {
            world.borrow_mut().client_close(life.link);
        }
        self.places.iter_mut().for_each(Place::leave);
        self.voices.are_cut_off(ledger);
        self.cut = Some(cut);
        self.cut_off = cut == Cut::Bye(CUT_OFF) && !ledger.excuses(world.borrow().now);
        self.over = self.last_life || self.lives >= self.plan.reader.lives;
        if self.over {
            self.voices.fall_silent(ledger);
        }
        let pause = world.borrow_mut().choices.of(&[0, 1_000, 50_000]);
        self.next_at = world.borrow().now + Duration::from_micros(pause);
        self.tell(ledger);
    }

    /// It does not come back any more: it closes its connection, or gives up one that is not open, or that it does not read.
    pub(super) fn finish(&mut self, world: &Rc<RefCell<World>>, ledger: &mut Ledger) {
        self.last_life = true;
        self.voices.fall_silent(ledger);
        match &mut self.life {
            Some(Life { wire: Wire::Open(socket), closing, .. }) if self.plan.reader.reading == Reading::Greedy => {
                if !std::mem::replace(closing, true) {
                    socket.close();
                }
            }
            Some(_) => self.end_life(Cut::Left, world, ledger),
            None => self.over = true,
        }
        self.tell(ledger);
    }

    /// It does not come back after this life.
    pub(super) fn stop_coming_back(&mut self, ledger: &mut Ledger) {
        self.last_life = true;
        self.over |= self.life.is_none();
        if self.over {
            self.voices.fall_silent(ledger);
        }
    }

    /// What it has not been given although it listens.
    pub(super) fn is_behind(&self, ledger: &Ledger) -> bool {
        let listens = self.life.as_ref().is_some_and(Life::is_open) && self.plan.reader.reading == Reading::Greedy;
        listens && self.places.iter().any(|place| place.is_in && (place.gap_to.is_some() || place.ears.is_behind(ledger)))
    }

    /// What it is and where, for who finds something wrong with it.
    pub(super) fn describe(&self) -> String {
        let life = self.life.as_ref().map(|life| (life.is_open(), life.welcomed, life.asked.len(), life.bye, life.closing, life.heard));
        let places: Vec<String> =
            self.places.iter().map(|place| format!("{} (in {}, asked {})", place.ears.describe(), place.is_in, place.asked)).collect();
        format!(
            "talker {}: {:?}, life {} (open, welcomed, asked, bye, closing, heard: {life:?}), {}, done {}, last ended by {:?}",
            self.id,
            self.plan,
            self.lives,
            places.join(", "),
            self.voices.are_done(),
            self.cut
        )
    }
}

impl Place {
    /// Nothing comes of it any more.
    fn leave(&mut self) {
        (self.is_in, self.asked, self.gap_to, self.fresh) = (false, false, None, None);
        (self.by_pattern, self.roster) = (false, None);
    }
}

impl Life {
    fn is_open(&self) -> bool {
        matches!(self.wire, Wire::Open(_)) && self.bye.is_none() && !self.closing
    }
}
