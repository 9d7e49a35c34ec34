//! Where the load goes: a `ws://` URL, or for event streams an `http://` one, in which `{room}` and `{client}` stand for numbers.

use std::net::{SocketAddr, ToSocketAddrs};

use super::LoadError;

/// A URL template, taken apart, and the address that its host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// As it was given.
    pub(super) template: String,
    pub(super) address: SocketAddr,
    /// `HOST:PORT` or `HOST`, for the Host header.
    pub(super) authority: String,
    path: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Room,
    Client,
}

impl Target {
    /// Takes a template of WebSockets apart and asks the resolver for its host.
    pub(super) fn new(template: &str) -> Result<Self, LoadError> {
        Self::parse(template, "--url", "ws", "ws://HOST:PORT/ws?room=r{room}")
    }

    /// The same for event streams.
    pub(super) fn events(template: &str) -> Result<Self, LoadError> {
        Self::parse(template, "--events", "http", "http://HOST:PORT/events?topic=r{room}")
    }

    fn parse(template: &str, option: &str, wanted: &str, example: &str) -> Result<Self, LoadError> {
        let wrong = |why: &str| LoadError::Usage(format!("{option} '{template}' {why}; it looks like '{example}'"));
        let rest = match template.split_once("://") {
            Some((scheme, rest)) if scheme == wanted => rest,
            Some(("wss" | "https", _)) => {
                return Err(wrong("asks for TLS, which this tool does not speak: name the port behind the proxy that has it"));
            }
            Some((scheme, _)) => return Err(wrong(&format!("begins with {scheme}://, not {wanted}://"))),
            None => return Err(wrong(&format!("does not begin with {wanted}://"))),
        };
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        if authority.is_empty() || authority.contains(['{', '@', '#']) {
            return Err(wrong("has no plain host"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if let Some(byte) = path.bytes().find(|byte| !byte.is_ascii_graphic() || *byte == b'#') {
            return Err(wrong(&format!("has {:?} in its path, which must be percent-encoded", char::from(byte))));
        }
        let path = pieces(&path).map_err(|unknown| wrong(&format!("has {{{unknown}}}; only {{room}} and {{client}} are replaced")))?;
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let address = with_port
            .to_socket_addrs()
            .map_err(|error| LoadError::Failed(format!("the host of {option}, {authority}, has no address: {error}; check its spelling")))?
            .next()
            .ok_or_else(|| LoadError::Failed(format!("the host of {option}, {authority}, has no address; check its spelling")))?;
        Ok(Self { template: template.to_owned(), address, authority: authority.to_owned(), path })
    }

    /// The path and query of one client.
    pub(super) fn path(&self, room: u32, client: u32) -> String {
        let mut path = String::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Room => path.push_str(&room.to_string()),
                Piece::Client => path.push_str(&client.to_string()),
            }
        }
        path
    }

    /// Whether clients of different rooms ask for different things.
    pub(super) fn tells_rooms_apart(&self) -> bool {
        self.path.contains(&Piece::Room) || self.path.contains(&Piece::Client)
    }
}

/// The error is the name between the braces.
fn pieces(path: &str) -> Result<Vec<Piece>, String> {
    let mut found = Vec::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or_else(|| after.to_owned())?;
        found.push(Piece::Text(before.to_owned()));
        found.push(match name {
            "room" => Piece::Room,
            "client" => Piece::Client,
            unknown => return Err(unknown.to_owned()),
        });
        rest = behind;
    }
    found.push(Piece::Text(rest.to_owned()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_and_client_are_replaced_wherever_they_stand() {
        let target = Target::new("ws://127.0.0.1:8080/{client}/ws?room=r{room}&x={room}").expect("it is valid");
        assert_eq!(target.path(7, 12), "/12/ws?room=r7&x=7");
        assert_eq!((target.address, target.authority.as_str()), (([127, 0, 0, 1], 8080).into(), "127.0.0.1:8080"));
        assert!(target.tells_rooms_apart());
    }

    #[test]
    fn port_and_path_may_be_left_out() {
        let target = Target::new("ws://127.0.0.1").expect("it is valid");
        assert_eq!((target.address.port(), target.path(1, 1).as_str()), (80, "/"));
        assert!(!target.tells_rooms_apart());
        assert_eq!(Target::new("ws://[::1]:9?a={room}").expect("it is valid").path(3, 0), "/?a=3");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (template, word) in [
            ("127.0.0.1:80", "does not begin"),
            ("http://127.0.0.1", "http://"),
            ("wss://127.0.0.1", "TLS"),
            ("ws:///ws", "no plain host"),
            ("ws://127.0.0.1/{user}", "{user}"),
            ("ws://127.0.0.1/{room", "{room}"),
            ("ws://127.0.0.1/a b", "percent-encoded"),
        ] {
            let error = Target::new(template).expect_err(template).to_string();
            assert!(error.contains(word) && error.contains("ws://HOST:PORT"), "{error}");
        }
        let error = Target::events("ws://127.0.0.1/events").expect_err("a WebSocket is no event stream").to_string();
        assert!(error.starts_with("--events") && error.contains("not http://"), "{error}");
    }
}
