//! How NATS is reached, as configured: servers, who we are, and whom we trust.

use std::path::PathBuf;

use crate::proto::subject::Rules;

/// What the NATS core is started with. Secrets are in files, so that no list of processes and no printed configuration shows them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Servers of one cluster, `nats://HOST:PORT` or `tls://HOST:PORT`. None: no NATS.
    pub servers: Vec<String>,
    /// Which topics go to NATS, and under which subjects.
    pub rules: Rules,
    /// The JetStream stream that keeps what goes out.
    pub stream: Option<String>,
    /// A credentials file: a JWT and the seed that signs for it.
    pub creds: Option<PathBuf>,
    /// A file with the seed of an NKEY.
    pub nkey: Option<PathBuf>,
    /// A file with a token.
    pub token: Option<PathBuf>,
    /// A user, whose password is in `password`.
    pub user: Option<String>,
    /// A file with the password.
    pub password: Option<PathBuf>,
    /// A file of certificates (PEM) that servers' are signed by, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

impl Options {
    /// Whether there is to be a connection at all.
    pub fn is_on(&self) -> bool {
        !self.servers.is_empty()
    }

    /// What in them does not go together.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn check(&self) -> Result<(), String> {
        let ways = [self.creds.is_some(), self.nkey.is_some(), self.token.is_some(), self.user.is_some()];
        if ways.into_iter().filter(|&given| given).count() > 1 {
            return Err("nats.creds, nats.nkey, nats.token and nats.user are four ways to say who we are; give one of them".to_owned());
        }
        if self.user.is_some() != self.password.is_some() {
            return Err("nats.user and nats.password go together; the second is a file with the password".to_owned());
        }
        if self.stream.is_some() && self.rules.subjects().iter().any(|subject| subject == ">") {
            return Err(
                "nats.stream keeps what nats.bridge leads out or in, which is every subject; give those a beginning, as in \"* <-> shardcast.*\""
                    .to_owned(),
            );
        }
        if self.stream.is_some() && self.rules.subjects().is_empty() {
            return Err("nats.stream keeps what nats.bridge leads out or in, which is nothing".to_owned());
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("nats.cert and nats.key go together".to_owned());
        }
        Ok(())
    }
}

/// Checks the name of a stream.
///
/// # Errors
/// What is wrong with it and what to write.
pub fn check_stream(name: &str) -> Result<(), String> {
    let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
        return Err("is not the name of a stream; write 1 to 64 letters, digits, _ or -".to_owned());
    }
    Ok(())
}

/// Checks the address of a server.
///
/// # Errors
/// What is wrong with it and what to write.
pub fn check_server(url: &str) -> Result<(), String> {
    let example = "write nats://HOST:PORT or tls://HOST:PORT";
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    if !["nats", "tls"].contains(&scheme) {
        return Err(format!("begins with {scheme}://; {example}"));
    }
    if rest.contains('@') {
        return Err("has a user or a password in it, which every list of processes would show; put it into a file (nats.creds, nats.token, nats.user and nats.password)".to_owned());
    }
    if rest.is_empty() || rest.contains(|char: char| char.is_whitespace() || matches!(char, '/' | '?' | '#')) {
        return Err(format!("is not an address of a server; {example}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_never_a_secret() {
        for url in ["nats://a", "nats://a:4222", "tls://[::1]:4222", "10.0.0.1:4222", "a"] {
            assert_eq!(check_server(url), Ok(()), "{url}");
        }
        for url in ["", "nats://", "http://a", "nats://me:secret@a", "me:secret@a", "nats://a/b", "nats://a b"] {
            assert!(check_server(url).is_err(), "{url}");
        }
    }

    #[test]
    fn one_way_to_say_who_we_are_is_enough() {
        assert_eq!(Options::default().check(), Ok(()));
        let file = || Some(PathBuf::from("f"));
        assert!(Options { creds: file(), token: file(), ..Options::default() }.check().is_err());
        assert!(Options { user: Some("me".into()), ..Options::default() }.check().is_err());
        assert!(Options { cert: file(), ..Options::default() }.check().is_err());
        let kept = |rule: &str| {
            let rules = Rules::new(vec![rule.parse().expect("a rule")]).expect("one rule");
            Options { stream: Some("KEPT".into()), rules, ..Options::default() }.check()
        };
        assert!(kept("* <-> *").is_err() && kept("* <- *").is_err());
        assert!(kept("a <- b").is_ok() && kept("* <-> s.*").is_ok());
        assert!(check_stream("KEPT-2").is_ok() && check_stream("a.b").is_err() && check_stream("").is_err());
        assert_eq!(Options { user: Some("me".into()), password: file(), ..Options::default() }.check(), Ok(()));
    }
}
