//! Raw rooms: `/ws?room=NAME` brings every message of the room unchanged to every member.

mod common;

use common::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, masked};
use common::raw::{self, Frame, Raw};
use common::{Gateway, SOON, foreign, gateway, sleep_ms};
use tungstenite::Message;

/// A member for sure: it has heard itself. (Membership of a room whose home is another shard takes a moment.)
fn join(gateway: &Gateway, path: &str) -> foreign::Client {
    let mut client = foreign::connect(gateway, path);
    client.text("I am in");
    client.expect_text("I am in");
    client
}

/// Two members who have heard the same last message.
fn pair(gateway: &Gateway, path: &str) -> (foreign::Client, foreign::Client) {
    let (mut first, mut second) = (foreign::connect(gateway, path), foreign::connect(gateway, path));
    for (own, client) in [("first", &mut first), ("second", &mut second)] {
        client.text(own);
        while client.message() != Message::text(own) {}
    }
    first.text("mark");
    for client in [&mut first, &mut second] {
        while client.message() != Message::text("mark") {}
    }
    (first, second)
}

#[test]
fn a_message_reaches_every_member_and_its_sender() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    first.text("hello");
    first.expect_text("hello");
    second.expect_text("hello");
}

#[test]
fn a_client_hears_its_own_first_message() {
    let gateway = gateway().start();
    for number in 0..20 {
        join(&gateway, &format!("/ws?room={number}")).leave();
    }
}

#[test]
fn echo_0_leaves_the_sender_out() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    let mut quiet = foreign::connect(&gateway, "/ws?room=lobby&echo=0");
    quiet.text("from the quiet one");
    first.expect_text("from the quiet one");
    second.expect_text("from the quiet one");
    first.text("answer");
    quiet.expect_text("answer");
}

#[test]
fn no_room_is_the_room_default() {
    let gateway = gateway().start();
    let (mut first, _second) = pair(&gateway, "/ws");
    let mut named = foreign::connect(&gateway, "/ws?room=default");
    named.text("from default");
    first.expect_text("from default");
}

#[test]
fn room_and_topic_are_the_same() {
    let gateway = gateway().start();
    let (mut first, _second) = pair(&gateway, "/ws?room=news");
    foreign::connect(&gateway, "/ws?topic=news").text("by topic");
    first.expect_text("by topic");
}

#[test]
fn a_room_name_may_be_any_utf_8() {
    let gateway = gateway().start();
    let longest = "é".repeat(127) + "e";
    for name in ["café", "日本語", "🦀🦀", "a b", "a+b", "a/b?c#d&e=f", "100%", "*", ">", "orders.created", &longest] {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (mut first, _second) = pair(&gateway, &format!("/ws?room={encoded}"));
        let mut lower = foreign::connect(&gateway, &format!("/ws?room={}", encoded.to_lowercase().replace("%61", "a")));
        lower.text(name);
        first.expect_text(name);
    }
}

#[test]
fn rooms_do_not_hear_each_other() {
    let gateway = gateway().start();
    let (mut first, _second) = pair(&gateway, "/ws?room=one");
    let (mut other, _another) = pair(&gateway, "/ws?room=One");
    other.text("only for One");
    other.expect_text("only for One");
    first.text("only for one");
    first.expect_text("only for one");
    other.expect_silence(100);
}

#[test]
fn text_and_binary_pass_unchanged() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    let every_byte: Vec<u8> = (0..=255).cycle().take(65_536).collect();
    for message in [Message::text(""), Message::text("κόσμε 🦀\r\n\0\t"), Message::binary(&b""[..]), Message::binary(every_byte)] {
        first.send(message.clone());
        assert!(first.message() == message);
        assert!(second.message() == message);
    }
}

#[test]
fn a_fragmented_message_reaches_the_room_as_one_frame() {
    let gateway = gateway().start();
    let mut sender = raw::ws(&gateway, "/ws?room=lobby");
    sender.send(TEXT, b"in ");
    sender.send(FIN | PING, b"between");
    sender.send(CONTINUATION, b"three ");
    sender.send(FIN | CONTINUATION, b"parts");
    assert_eq!(sender.frame(), Frame::new(FIN | PONG, *b"between"));
    assert_eq!(sender.frame(), Frame::new(FIN | TEXT, *b"in three parts"));
}

#[test]
fn half_a_message_of_a_client_that_leaves_reaches_nobody() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    let mut leaver = raw::ws(&gateway, "/ws?room=lobby");
    leaver.send_text("whole");
    leaver.send(TEXT, b"half");
    leaver.close(1000);
    first.expect_text("whole");
    second.expect_text("whole");
    first.expect_silence(100);
}

#[test]
fn one_senders_messages_keep_their_order_for_everyone() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    for number in 0..2000 {
        first.text(&number.to_string());
    }
    for number in 0..2000 {
        second.expect_text(&number.to_string());
        first.expect_text(&number.to_string());
    }
}

#[test]
fn all_members_hear_one_order_of_many_senders() {
    let gateway = gateway().start();
    let mut members: Vec<foreign::Client> = Vec::new();
    for _ in 0..3 {
        let (one, another) = pair(&gateway, "/ws?room=lobby");
        members.extend([one, another]);
    }
    members[0].text("start");
    for member in &mut members {
        while member.message() != Message::text("start") {}
    }
    for number in 0..100 {
        for (name, member) in members.iter_mut().enumerate() {
            member.text(&format!("{name}: {number}"));
        }
    }
    let orders: Vec<Vec<String>> =
        members.iter_mut().map(|member| (0..600).map(|_| member.message().into_text().expect("text").to_string()).collect()).collect();
    for order in &orders[1..] {
        assert!(*order == orders[0], "two members heard different orders");
    }
}

#[test]
fn a_room_that_emptied_is_a_room_like_new() {
    let gateway = gateway().start();
    for round in 0..3 {
        let (mut first, second) = pair(&gateway, "/ws?room=revolving");
        first.text(&round.to_string());
        first.expect_text(&round.to_string());
        first.leave();
        second.leave();
        gateway.wait_for_connections(0);
    }
}

#[test]
fn connections_spread_evenly_over_the_shards() {
    let gateway = gateway().start();
    let clients: Vec<foreign::Client> = (0..200).map(|number| foreign::connect(&gateway, &format!("/ws?room={number}"))).collect();
    let shares = gateway.shard_connections();
    assert_eq!(shares.iter().sum::<u64>(), 200);
    assert!(shares.iter().all(|share| (90..=110).contains(share)), "{shares:?}");
    drop(clients);
}

#[test]
fn messages_and_deliveries_are_counted() {
    let gateway = gateway().start();
    let (mut first, mut second) = pair(&gateway, "/ws?room=lobby");
    let before = gateway.metrics();
    for _ in 0..10 {
        first.text("count me");
    }
    for _ in 0..10 {
        first.expect_text("count me");
        second.expect_text("count me");
    }
    common::eventually(common::SOON, || {
        let after = gateway.metrics();
        let grown = |name| after.sum(name, &[]) - before.sum(name, &[]);
        match (grown("shardcast_messages_in_total"), grown("shardcast_deliveries_total")) {
            (10.0, 20.0) => Ok(()),
            (messages, deliveries) => Err(format!("{messages} messages and {deliveries} deliveries were counted, 10 and 20 were expected")),
        }
    });
}

/// 40 upgrades into 4 new rooms that the gateway sees all at once: every second client closes right behind its upgrade, every second has said something
/// by then. `(closes, socket)` of each.
fn join_at_once(gateway: &Gateway) -> Vec<(bool, Raw)> {
    let mut clients: Vec<(bool, Raw)> = (0..40).map(|number| (number % 4 < 2, Raw::connect(gateway.port))).collect();
    sleep_ms(100);
    gateway.stopped(|| {
        for (number, (closes, raw)) in clients.iter_mut().enumerate() {
            let mut bytes = raw::upgrade(&format!("/ws?room=new-{}", number / 4 % 4), "").into_bytes();
            if number % 2 == 1 {
                bytes.extend(masked(FIN | TEXT, b"early"));
            }
            if *closes {
                bytes.extend(masked(FIN | CLOSE, &frame::close_payload(1000, b"")));
            }
            raw.write(&bytes);
        }
    });
    clients
}

/// A Close frame pipelined behind an upgrade, while the room's home shard was asked for the room, freed the topic under others who waited for it too:
/// they were never answered, and their connections and the topic stayed for ever.
#[test]
fn a_client_that_closes_while_it_joins_takes_nobody_with_it() {
    for _ in 0..3 {
        let gateway = gateway().limit("history_messages", 0).start();
        let mut rooms: Vec<Vec<Raw>> = (0..4).map(|_| Vec::new()).collect();
        for (number, (closes, mut raw)) in join_at_once(&gateway).into_iter().enumerate() {
            if closes {
                raw.expect_end(SOON);
            } else {
                raw.expect_upgraded();
                rooms[number / 4 % 4].push(raw);
            }
        }
        gateway.wait_for_connections(20);
        for (room, members) in rooms.iter_mut().enumerate() {
            let last = members.len() - 1;
            for speaker in [0, last] {
                let mark = format!("{speaker} in {room}");
                members[speaker].send_text(&mark);
                for member in members.iter_mut() {
                    loop {
                        let said = member.frame();
                        if said.payload == mark.as_bytes() {
                            break;
                        }
                        assert_eq!(said, Frame::new(FIN | TEXT, *b"early"));
                    }
                }
            }
        }
        rooms.into_iter().flatten().for_each(|raw| raw.close(1000));
        gateway.wait_for_connections(0);
        gateway.wait_for_no_topics();
    }
}

/// The same crowd, and everybody hangs up before the answers are read.
#[test]
fn clients_that_hang_up_while_they_join_leave_nothing_behind() {
    for _ in 0..3 {
        let gateway = gateway().limit("history_messages", 0).start();
        let before = gateway.descriptors();
        drop(join_at_once(&gateway));
        gateway.wait_for_connections(0);
        gateway.wait_for_no_topics();
        common::eventually(SOON, || match gateway.descriptors() {
            after if after <= before => Ok(()),
            after => Err(format!("{after} descriptors are open, {before} were before the clients")),
        });
        // The rooms are like new.
        for room in 0..4 {
            join(&gateway, &format!("/ws?room=new-{room}")).leave();
        }
    }
}

/// A publisher sent 1500 messages, its Close frame and FIN, and was paused because its topic was behind. FIN was told at once while its last messages
/// were still held back: they were dropped and the client counted as gone.
#[test]
fn what_a_client_says_before_its_close_arrives_although_it_was_paused() {
    const MESSAGES: u32 = 1500;
    // Room in the reader's queue for all of it: the reader is not what this is about.
    let gateway = gateway().limit("topic_lag_bytes_max", 4096).limit("publish_bytes_max", 4096).limit("queue_bytes_max", 16 << 20).start();
    for round in 1..=4 {
        let mut reader = raw::ws(&gateway, "/ws?room=lobby");
        reader.send_text("in");
        reader.expect_text("in");
        let mut leaver = raw::ws(&gateway, "/ws?room=lobby&echo=0");
        let mut bytes = Vec::new();
        for number in 0..MESSAGES {
            let mut payload = [b'd'; 1000];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            frame::append_masked(&mut bytes, FIN | BINARY, &payload);
        }
        frame::append_masked(&mut bytes, FIN | CLOSE, &frame::close_payload(1000, b""));
        let leaving = std::thread::spawn(move || {
            leaver.write(&bytes);
            leaver.shutdown_write();
            assert_eq!(leaver.close_frame().0, Some(1000));
            leaver.expect_end(SOON);
        });
        for number in 0..MESSAGES {
            let heard = reader.frame();
            assert_eq!((heard.first, heard.payload.len()), (FIN | BINARY, 1000));
            assert_eq!(heard.payload[..4], number.to_be_bytes(), "round {round}");
        }
        leaving.join().expect("the leaver is answered");
        reader.close(1000);
        gateway.wait_for_connections(0);
        gateway.wait_for_closes("client_closed", 2 * round);
        assert_eq!(gateway.closes("client_gone"), 0);
    }
    assert!(gateway.metrics().sum("shardcast_publishers_paused_total", &[]) > 0.0, "nobody was paused: this test tests nothing");
}
