//! Tests of the configuration as a whole: layers, sources, messages. What one reader does is tested beside it.

use super::*;

fn with_file(text: &str) -> Layers {
    Layers { file: Some((PathBuf::from("shardcast.toml"), text.to_owned())), ..Layers::default() }
}

fn problems(layers: &Layers) -> Vec<String> {
    layers.resolve().expect_err("the layers have problems").problems
}

fn environment(pairs: &[(&str, &str)]) -> Layers {
    Layers { environment: pairs.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect(), ..Layers::default() }
}

#[test]
fn nothing_said_is_the_default() {
    let effective = Layers::default().resolve().expect("defaults hold together");
    assert_eq!(effective.config, Config::default());
    assert_eq!(effective.source("listen"), Source::Default);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let mut layers =
        with_file("listen = \"1.1.1.1:1\"\nshards = 1\ncpus = [0, 1]\n\n[limits]\nmessage_bytes_max = \"32KiB\"\nlinger_ms = 7000\n");
    layers.environment =
        environment(&[("SHARDCAST_LISTEN", "2.2.2.2:2"), ("SHARDCAST_SHARDS", "2"), ("SHARDCAST_LIMITS_LINGER_MS", "8s")]).environment;
    layers.flags = vec![("listen", "3.3.3.3:3".to_owned())];
    let effective = layers.resolve().expect("all layers are right");
    assert_eq!(effective.config.listen.to_string(), "3.3.3.3:3");
    assert_eq!(effective.source("listen"), Source::Flag("--listen"));
    assert_eq!(effective.config.shards, Some(2));
    assert_eq!(effective.source("shards"), Source::Environment("SHARDCAST_SHARDS".to_owned()));
    assert_eq!(effective.config.cpus, Cpus::List(vec![0, 1]));
    assert_eq!(effective.source("cpus"), Source::File("shardcast.toml".into(), 3));
    assert_eq!(effective.config.limits.message_bytes_max, 32 * 1024);
    assert_eq!(effective.config.limits.linger_ms, 8000);
}

#[test]
fn every_problem_of_every_layer_is_reported_at_once_with_its_place() {
    let mut layers = with_file(
        "listen = 8080\nshard = 2\nmessage_bytes_max = 100\n\n[limits]\nmesage_bytes_max = 1000\nlinger_ms = \"2min\"\ntopics_max = true\n\n[limit]\nbacklog = 1\n\n[tls]\n",
    );
    layers.environment = environment(&[("SHARDCAST_LISTN", "x"), ("SHARDCAST_DRIVER", "kqueue"), ("SHARDCAST_COLOUR", "x")]).environment;
    layers.flags = vec![("cpus", "5-2".to_owned())];
    assert_eq!(
        problems(&layers),
        [
            "shardcast.toml:1: listen is 8080; write an address and a port, for example \"0.0.0.0:8080\"",
            "shardcast.toml:2: unknown key shard; did you mean shards?",
            "shardcast.toml:3: unknown key message_bytes_max; did you mean limits.message_bytes_max?",
            "shardcast.toml:6: unknown key limits.mesage_bytes_max; did you mean limits.message_bytes_max?",
            "shardcast.toml:7: limits.linger_ms is 120000 ms; it can be 10 ms to 60000 ms (1 min) (default 5000 ms (5 s))",
            "shardcast.toml:8: limits.topics_max is true; write a whole number",
            "shardcast.toml:11: unknown key limit.backlog; did you mean limits.backlog?",
            "shardcast.toml:13: unknown key tls; `shardcast config default` prints all keys",
            "unknown environment variable SHARDCAST_LISTN; did you mean SHARDCAST_LISTEN?",
            "SHARDCAST_DRIVER is \"kqueue\"; write auto or uring or epoll",
            "unknown environment variable SHARDCAST_COLOUR; `shardcast config default` names those that are read",
            "--cpus is \"5-2\", where \"5-2\" is not a CPU number below 8192 or a range of them; write a list such as \"0,2-5\", or auto, or off",
        ]
    );
}

#[test]
fn a_section_in_place_of_a_value_and_a_value_in_place_of_a_section_are_told_apart() {
    assert_eq!(
        problems(&with_file("limits = 3\n[listen]\nport = 8080\n")),
        [
            "shardcast.toml:1: limits is a section; write its keys below a line [limits]",
            "shardcast.toml:2: listen is a section; write listen = value",
        ]
    );
}

#[test]
fn a_broken_line_does_not_hide_what_is_wrong_with_the_others() {
    let problems = problems(&with_file("listen = = 3\nshard = 2\n"));
    assert!(problems.iter().any(|problem| problem.starts_with("shardcast.toml:1: not TOML: ")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem == "shardcast.toml:2: unknown key shard; did you mean shards?"), "{problems:?}");
}

#[test]
fn limits_are_held_against_each_other() {
    let problems = problems(&with_file("[limits]\nrecv_buffers = 1000\n"));
    assert_eq!(problems, ["limits.recv_buffers is 1000; it must be a power of two, for example 1024"]);
}

#[test]
fn clients_and_admin_cannot_share_a_port() {
    let with_listen = |listen: &str| Layers { flags: vec![("listen", listen.to_owned())], ..Layers::default() };
    assert_eq!(
        problems(&with_listen("0.0.0.0:9090")),
        ["listen 0.0.0.0:9090 and admin 127.0.0.1:9090 overlap; give one of them another port"]
    );
    assert!(with_listen("[::]:9090").resolve().is_err() && with_listen("127.0.0.1:9090").resolve().is_err());
    assert!(with_listen("127.0.0.2:9090").resolve().is_ok());
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let effective = environment(&[("SHARDCAST_LISTEN", ""), ("SHARDCAST_LIMITS_LINGER_MS", "")]).resolve().expect("nothing is said");
    assert_eq!(effective.config, Config::default());
}

/// A service called `shardcast` in the same namespace would otherwise keep every pod from starting.
#[test]
fn variables_that_kubernetes_makes_of_services_are_passed_over() {
    let effective = environment(&[
        ("SHARDCAST_SERVICE_HOST", "10.0.0.1"),
        ("SHARDCAST_SERVICE_PORT", "8080"),
        ("SHARDCAST_SERVICE_PORT_HTTP", "8080"),
        ("SHARDCAST_PORT", "tcp://10.0.0.1:8080"),
        ("SHARDCAST_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("SHARDCAST_PORT_8080_TCP_PROTO", "tcp"),
        ("SHARDCAST_ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("SHARDCAST_ADMIN_PORT", "tcp://10.0.0.1:9090"),
    ])
    .resolve()
    .expect("none of them is ours");
    assert_eq!(effective.config, Config::default());
    assert!(environment(&[("SHARDCAST_PORT", "8080")]).resolve().is_err(), "somebody meant SHARDCAST_LISTEN");
}

#[test]
fn the_default_file_names_every_key_and_says_what_is_the_default_anyway() {
    let text = default_file();
    assert_eq!(with_file(&text).resolve().expect("the default file is right").config, Config::default());
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let effective = with_file(&uncommented).resolve().expect("every default can be written down");
    assert_eq!(effective.config, Config::default());
    for key in Key::all() {
        assert!(matches!(effective.source(key.id()), Source::File(..)), "{} is missing in\n{text}", key.name());
        assert!(text.contains(&key.environment()), "{}", key.environment());
    }
}

#[test]
fn what_is_shown_reads_back_and_names_its_sources() {
    let mut layers = with_file("origins = [\"https://a.example\"]\n\n[log]\nfilter = \"info,shardcast::gateway=debug\"\n");
    layers.flags = vec![("shards", "3".to_owned()), ("admin", "off".to_owned()), ("cpus", "0,2-3".to_owned())];
    let effective = layers.resolve().expect("the layers are right");
    let text = effective.show();
    assert_eq!(with_file(&text).resolve().expect("what is shown reads back").config, effective.config, "{text}");
    for (key, source) in [
        ("shards = 3", "flag --shards"),
        ("filter = ", "file shardcast.toml:4"),
        ("listen = ", "default"),
        ("linger_ms = 5000", "default, 5 s"),
    ] {
        assert!(text.lines().any(|line| line.starts_with(key) && line.ends_with(source)), "{key}: {source} is missing in\n{text}");
    }
}

#[test]
fn rules_for_slow_readers_are_read_in_every_layer_and_mistakes_say_what_to_write() {
    let layers = with_file("slow = [\"prices.audit disconnect\", \"prices.* drop_oldest\"]\n");
    let shown = layers.resolve().expect("rules").config.slow.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown, ["prices.audit disconnect", "prices.* drop_oldest"]);
    let environment = |value: &str| Layers { environment: vec![("SHARDCAST_SLOW".to_owned(), value.into())], ..Layers::default() };
    assert_eq!(environment("a disconnect, * drop_oldest").resolve().expect("rules").config.slow.iter().count(), 2);
    for (value, says) in [
        ("prices.* drop-oldest", "did you mean drop_oldest?"),
        ("prices.* discard", "there are disconnect, drop_oldest, conflate"),
        ("drop_oldest prices.*", "write \"prices.* drop_oldest\""),
        ("* drop_oldest, a disconnect", "is never reached"),
    ] {
        let problems = problems(&environment(value));
        assert!(
            problems.len() == 1 && problems[0].starts_with("SHARDCAST_SLOW has a mistake: ") && problems[0].contains(says),
            "{problems:?}"
        );
    }
    let above = problems(&with_file("slow = [\"a drop_oldest\"]\n[limits]\nqueue_bytes_max = \"128KiB\"\n"));
    assert!(above[0].starts_with("limits.queue_soft_bytes is 262144, above limits.queue_bytes_max 131072: "), "{above:?}");
    assert!(with_file("[limits]\nqueue_bytes_max = \"128KiB\"\n").resolve().is_ok(), "without a rule it has no meaning");
}

#[test]
fn an_unspecified_address_takes_the_port_of_its_family_and_that_of_ipv6_of_both() {
    for (listen, admin, overlap) in [
        ("[::]:9090", "127.0.0.1:9090", true),
        ("[::]:9090", "[::1]:9090", true),
        ("0.0.0.0:9090", "[::]:9090", true),
        ("[::ffff:127.0.0.1]:9090", "127.0.0.1:9090", true),
        ("0.0.0.0:9090", "[::1]:9090", false),
        ("127.0.0.1:9090", "[::1]:9090", false),
        ("[::]:0", "127.0.0.1:0", false),
    ] {
        let layers = Layers { flags: vec![("listen", listen.to_owned()), ("admin", admin.to_owned())], ..Layers::default() };
        assert_eq!(layers.resolve().is_err(), overlap, "{listen} and {admin}");
    }
}

#[test]
fn keys_flags_and_variables_are_each_named_once() {
    let mut names: Vec<String> =
        Key::all().flat_map(|key| [Some(key.id().to_owned()), Some(key.environment()), key.flag().map(str::to_owned)]).flatten().collect();
    let total = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), total);
}
