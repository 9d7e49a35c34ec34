//! How a connection is made: the token, TCP, TLS where it is built in, and the upgrade. What fails is a [`Loss`], with what the server said about coming back.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::http::{HeaderMap, Response, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::session::Loss;
#[cfg(feature = "client-tls")]
use super::tls::Tls;
use super::wire::PROTOCOL;

/// What is read from the socket, and gathered for it, at a time, in bytes.
const READ_BYTES: usize = 16 << 10;
const WRITE_BYTES: usize = 32 << 10;

/// Asked for a token before each connection, and when one expires.
pub(super) type TokenHook = Arc<dyn Fn() -> Token + Send + Sync>;
/// One that is asked for.
pub(super) type Token = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection that speaks.
pub(super) type Socket = WebSocketStream<Transport>;

/// A URL that nobody can be connected to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// It is none, or not one of a gateway.
    #[error("{url:?} is no URL of a gateway: {why}; one looks like ws://127.0.0.1:8080")]
    Invalid {
        /// What was given.
        url: Box<str>,
        /// What is wrong with it.
        why: Box<str>,
    },
    /// It asks for TLS, which is not built in.
    #[error("{url:?} needs TLS, which this build does not have; build shardcast with the feature client-tls, or connect to a ws:// URL")]
    NoTls {
        /// What was given.
        url: Box<str>,
    },
    /// There is no tokio runtime here for the client's task.
    #[error("no tokio runtime is running here; make the client inside of one that has I/O and time enabled")]
    NoRuntime,
}

/// Where to connect.
#[derive(Clone, Debug)]
pub(super) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_secure: bool,
}

impl Target {
    /// Takes the URL of a gateway, with the path under which a proxy has it, or that of its `/ws`.
    /// The client calls itself `user` there.
    pub(super) fn parse(url: &str, user: Option<&str>) -> Result<Self, UrlError> {
        let invalid = |why: &str| UrlError::Invalid { url: url.into(), why: why.into() };
        let given: Uri = url.parse().map_err(|error: tokio_tungstenite::tungstenite::http::uri::InvalidUri| invalid(&error.to_string()))?;
        let is_secure = match given.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            Some(_) => return Err(invalid("its scheme is not ws, wss, http or https")),
            None => return Err(invalid("it has no scheme")),
        };
        let authority = given.authority().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it has a user in it; give a token to the client instead"));
        }
        if is_secure && cfg!(not(feature = "client-tls")) {
            return Err(UrlError::NoTls { url: url.into() });
        }
        let path = given.path().trim_end_matches('/');
        let mut path = if path.ends_with("/ws") { path.to_owned() } else { format!("{path}/ws") };
        // Of two names the first counts.
        let user = user.map(|user| format!("user={}", utf8_percent_encode(user, NON_ALPHANUMERIC)));
        let query: Vec<&str> = user.as_deref().into_iter().chain(given.query()).collect();
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let scheme = if is_secure { "wss" } else { "ws" };
        let uri = Uri::builder().scheme(scheme).authority(authority.clone()).path_and_query(path).build();
        Ok(Self {
            uri: uri.map_err(|error| invalid(&error.to_string()))?,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 }),
            is_secure,
        })
    }
}

/// Makes connections to one gateway.
pub(super) struct Dialer {
    pub(super) target: Target,
    pub(super) token: Option<TokenHook>,
    pub(super) frame_bytes_max: usize,
    #[cfg(feature = "client-tls")]
    pub(super) tls: Tls,
}

impl Dialer {
    /// One connection, and the token to say on it.
    pub(super) async fn dial(&self) -> Result<(Socket, Option<String>), Loss> {
        let token = match &self.token {
            Some(hook) => Some(hook().await.map_err(|error| Loss::of(format!("there is no token: {error}")))?),
            None => None,
        };
        let Target { uri, host, port, is_secure } = &self.target;
        let unreachable = |error: io::Error| Loss::of(format!("{host}:{port}: {error}"));
        let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream = if *is_secure { self.secure(tcp).await.map_err(unreachable)? } else { Transport::Tcp(tcp) };
        let mut config = WebSocketConfig::default();
        config.read_buffer_size = READ_BYTES;
        config.write_buffer_size = WRITE_BYTES;
        config.max_message_size = Some(self.frame_bytes_max);
        config.max_frame_size = Some(self.frame_bytes_max);
        let request = ClientRequestBuilder::new(uri.clone()).with_sub_protocol(PROTOCOL);
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok((socket, token)),
            Err(error) => Err(refusal(error)),
        }
    }

    #[cfg(feature = "client-tls")]
    async fn secure(&self, tcp: TcpStream) -> io::Result<Transport> {
        self.tls.connect(&self.target.host, tcp).await.map(|stream| Transport::Tls(Box::new(stream)))
    }

    #[cfg(not(feature = "client-tls"))]
    #[expect(clippy::unused_async, reason = "with TLS it waits")]
    async fn secure(&self, _: TcpStream) -> io::Result<Transport> {
        Err(io::Error::other("TLS is not built in"))
    }
}

/// What an upgrade that failed says: 4000 and the status where something must change first.
fn refusal(error: WsError) -> Loss {
    match error {
        WsError::Http(response) => refused(&response),
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Loss {
            code: Some(1002),
            reason: format!("what answers there does not speak {PROTOCOL}; is it a shardcast gateway?"),
            hint: None,
        },
        error => Loss::of(format!("the upgrade has failed: {error}")),
    }
}

fn refused(response: &Response<Option<Vec<u8>>>) -> Loss {
    #[derive(Deserialize, Default)]
    struct Body {
        #[serde(default)]
        error: Reason,
    }
    #[derive(Deserialize, Default)]
    struct Reason {
        #[serde(default)]
        message: String,
        retry_ms: Option<u64>,
    }
    let Body { error } = response.body().as_deref().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
    // The header has whole seconds; the body knows better.
    let hint = error.retry_ms.map(Duration::from_millis).or_else(|| retry_after(response.headers()));
    let status = response.status();
    let passes = hint.is_some() || [408, 425, 429].contains(&status.as_u16());
    let reason = if error.message.is_empty() { format!("the upgrade was answered {status}") } else { error.message };
    match (status.is_client_error(), passes) {
        (true, false) => Loss { code: Some(4000 + status.as_u16()), reason, hint: None },
        _ => Loss { code: None, reason: format!("{} {reason}", status.as_u16()), hint },
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get("retry-after")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What a WebSocket lies on.
pub(super) enum Transport {
    Tcp(TcpStream),
    #[cfg(feature = "client-tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

macro_rules! either {
    ($own:expr, $stream:ident => $do:expr) => {
        match $own.get_mut() {
            Transport::Tcp($stream) => $do,
            #[cfg(feature = "client-tls")]
            Transport::Tls($stream) => $do,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_gateway_is_enough() {
        for (url, uri, host, port) in [
            ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/ws", "127.0.0.1", 8080),
            ("http://localhost/", "ws://localhost/ws", "localhost", 80),
            ("ws://[::1]:80/ws", "ws://[::1]:80/ws", "::1", 80),
            ("ws://example.com/live/", "ws://example.com/live/ws", "example.com", 80),
            ("ws://example.com?user=anna", "ws://example.com/ws?user=anna", "example.com", 80),
            ("ws://example.com/live/ws/", "ws://example.com/live/ws", "example.com", 80),
        ] {
            let target = Target::parse(url, None).expect(url);
            assert_eq!((&*target.uri.to_string(), &*target.host, target.port), (uri, host, port));
        }
    }

    #[test]
    fn a_user_is_said_in_the_url_before_what_stands_there() {
        for (url, uri) in
            [("ws://a", "ws://a/ws?user=Anna%20%26%20B%C3%B6"), ("ws://a/?x=1&user=b", "ws://a/ws?user=Anna%20%26%20B%C3%B6&x=1&user=b")]
        {
            assert_eq!(Target::parse(url, Some("Anna & Bö")).expect(url).uri.to_string(), uri);
        }
    }

    #[test]
    fn a_url_that_cannot_be_is_refused_with_what_is_wrong() {
        for (url, why) in
            [("", "empty"), ("localhost:8080", "scheme"), ("/ws", "scheme"), ("tcp://localhost", "scheme"), ("ws://a:b@localhost", "token")]
        {
            let error = Target::parse(url, None).expect_err(url).to_string();
            assert!(error.contains(why) && error.contains(&format!("{url:?}")), "{error}");
        }
        if cfg!(not(feature = "client-tls")) {
            let error = Target::parse("wss://example.com", None).expect_err("no TLS").to_string();
            assert!(error.contains("client-tls"), "{error}");
        }
    }

    #[test]
    fn a_refusal_stops_or_says_when_to_come_back() {
        let answer = |status: u16, retry_after: Option<&str>, body: &str| {
            let mut response = Response::builder().status(status);
            if let Some(seconds) = retry_after {
                response = response.header("Retry-After", seconds);
            }
            let loss = refused(&response.body(Some(body.as_bytes().to_vec())).expect("a response"));
            (loss.code, loss.hint.map(|hint| hint.as_millis()), loss.reason)
        };
        let body = r#"{"error":{"code":"unavailable","message":"full","retry_ms":8200}}"#;
        assert_eq!(answer(503, Some("9"), body), (None, Some(8200), "503 full".to_owned()));
        assert_eq!(
            answer(503, Some("9"), "cut off {"),
            (None, Some(9000), "503 the upgrade was answered 503 Service Unavailable".to_owned())
        );
        let (code, hint, _) = answer(429, None, "");
        assert_eq!((code, hint), (None, None));
        let gone = answer(404, None, r#"{"error":{"code":"not_found","message":"no such path"}}"#);
        assert_eq!(gone, (Some(4404), None, "no such path".to_owned()));
        assert_eq!(answer(401, None, "").0, Some(4401));
        assert_eq!(answer(302, Some("soon"), "").0, None);
    }
}
