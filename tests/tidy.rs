//! The rules of the source tree that no compiler checks. Each message says what to do.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers (docs/architecture.md, Layers): a module, and the modules that it may import. From the bottom up.
const LAYERS: &[(&str, &[&str])] = &[
    ("ids", &["limits", "time"]),
    ("limits", &[]),
    ("time", &[]),
    ("sync", &[]),
    ("proto", &["ids", "limits"]),
    ("engine", &["ids", "limits", "time", "sync"]),
    ("hub", &["ids", "limits", "time"]),
    ("bus", &["ids", "limits", "sync", "proto"]),
    ("gateway", &["ids", "limits", "time", "proto", "engine", "hub", "bus"]),
    ("web", &["gateway"]),
    ("server", &["ids", "limits", "time", "sync", "proto", "engine", "hub", "gateway", "bus", "web"]),
    ("sim", &["ids", "limits", "time", "sync", "proto", "engine", "hub", "gateway", "bus"]),
    ("bin", &["time", "engine", "gateway", "server", "sim"]),
    ("events", &["bus"]),
    ("client", &["time"]),
    ("load", &["ids", "limits", "time", "proto"]),
    ("cli", &["ids", "limits", "time", "sync", "proto", "engine", "hub", "gateway", "bus", "web", "server", "events", "client", "load"]),
];

/// The only module with `unsafe` in it.
const UNSAFE_LIVES_IN: &str = "engine";
const FILE_LINES_MAX: usize = 800;
const DECISION_LINES_MAX: usize = 40;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `directory` with this extension, sorted, as paths from the root of the package.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|has| has == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(directory), extension, &mut found);
    found.sort();
    found.into_iter().map(|path| path.strip_prefix(root()).expect("below the root").to_owned()).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text without line comments, lines kept.
fn code(text: &str) -> String {
    text.lines()
        .map(|line| {
            let comment = line.match_indices("//").map(|(at, _)| at).find(|at| line[..*at].trim().is_empty() || line[..*at].ends_with(' '));
            format!("{}\n", &line[..comment.unwrap_or(line.len())])
        })
        .collect()
}

/// `src/hub/topic.rs` is in `hub`, `src/limits.rs` in `limits`; the crate roots are in no module.
fn module(path: &Path) -> Option<String> {
    let first = path.components().nth(1).expect("below src").as_os_str().to_str().expect("a plain name");
    let name = first.trim_end_matches(".rs");
    (!["lib", "main"].contains(&name)).then(|| name.to_owned())
}

/// Fails with all complaints at once.
fn verdict(complaints: String) {
    assert!(complaints.is_empty(), "\n{complaints}");
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The first names after `prefix` (`crate::`), one by one or in braces, each with the line it is on.
fn names_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if at > 0 && (is_word(code.as_bytes()[at - 1]) || code.as_bytes()[at - 1] == b':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let word = |text: &str| text.bytes().take_while(|byte| is_word(*byte)).map(char::from).collect::<String>();
        let mut push = |offset: usize, name: String| {
            if !name.is_empty() {
                found.push((code[..at + prefix.len() + offset].matches('\n').count() + 1, name));
            }
        };
        if !rest.starts_with('{') {
            push(0, word(rest));
            continue;
        }
        let mut depth = 0;
        for (offset, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' | b',' => {
                    depth += usize::from(byte == b'{');
                    if depth == 1 {
                        let skipped = rest[offset + 1..].len() - rest[offset + 1..].trim_start().len();
                        push(offset + 1 + skipped, word(&rest[offset + 1 + skipped..]));
                    }
                }
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn imports_point_down_the_layers() {
    let mut complaints = String::new();
    for path in files("src", "rs") {
        let Some(own) = module(&path) else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == own) else {
            writeln!(complaints, "src/{own} is in no layer: add it to LAYERS in tests/tidy.rs and to docs/architecture.md, Layers")
                .expect("a string");
            continue;
        };
        let code = code(&read(&path));
        let mut imports = names_after(&code, "crate::");
        imports.extend(names_after(&code, "shardcast::"));
        // `super::` often enough is `crate::` by another name.
        let depth = path.components().count() - 1 - usize::from(path.ends_with("mod.rs"));
        imports.extend(names_after(&code, &"super::".repeat(depth)));
        for (line, name) in imports {
            if name != own && LAYERS.iter().any(|(layer, _)| *layer == name) && !allowed.contains(&name.as_str()) {
                let may = if allowed.is_empty() { "nothing of the crate".to_owned() } else { allowed.join(", ") };
                writeln!(
                    complaints,
                    "{}:{line} imports crate::{name}; {own} may use {may} (docs/architecture.md, Layers). Move the code to the layer that may, or pass in what it needs",
                    path.display()
                )
                .expect("a string");
            }
        }
    }
    verdict(complaints);
}

#[test]
fn unsafe_lives_in_one_module_and_every_other_forbids_it() {
    let mut complaints = String::new();
    for path in files("src", "rs") {
        let text = read(&path);
        let own = module(&path);
        if own.as_deref() == Some(UNSAFE_LIVES_IN) {
            continue;
        }
        for (number, line) in code(&text).lines().enumerate() {
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"].iter().any(|word| line.contains(word)) {
                writeln!(
                    complaints,
                    "{}:{} has unsafe; move it into src/{UNSAFE_LIVES_IN}/ behind a safe function",
                    path.display(),
                    number + 1
                )
                .expect("a string");
            }
        }
        let top = path.components().count() == 2 || path.components().count() == 3 && path.ends_with("mod.rs");
        let crate_root_of_library = path.ends_with("src/lib.rs");
        if top && !crate_root_of_library && !text.contains("#![forbid(unsafe_code)]") {
            writeln!(complaints, "{}: add #![forbid(unsafe_code)] below the module's documentation", path.display()).expect("a string");
        }
    }
    verdict(complaints);
}

#[test]
fn a_file_holds_one_concept() {
    let mut complaints = String::new();
    for path in files("src", "rs") {
        let lines = read(&path).lines().count();
        if lines > FILE_LINES_MAX {
            writeln!(
                complaints,
                "{} has {lines} lines, over {FILE_LINES_MAX}; look for its second concept and give that a file named by the noun it defines",
                path.display()
            )
            .expect("a string");
        }
    }
    verdict(complaints);
}

#[test]
fn a_file_says_first_what_it_is() {
    let mut complaints = String::new();
    for path in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        if !read(&path).starts_with("//! ") {
            writeln!(complaints, "{}: begin with a line `//! …` that says what this is and what it is not", path.display())
                .expect("a string");
        }
    }
    verdict(complaints);
}

#[test]
fn nothing_unfinished_is_left() {
    let mut complaints = String::new();
    let words = ["todo!", "unimplemented!", "dbg!", "FIXME", "XXX"];
    for path in files("src", "rs").into_iter().chain(files("benches", "rs")).chain(files("fuzz", "rs")) {
        for (number, line) in read(&path).lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                writeln!(
                    complaints,
                    "{}:{} has {word}: finish it, or file an issue and say here what holds meanwhile",
                    path.display(),
                    number + 1
                )
                .expect("a string");
            }
        }
    }
    verdict(complaints);
}

#[test]
fn every_dependency_says_what_it_saves_us() {
    let mut complaints = String::new();
    let mut in_dependencies = false;
    for (number, line) in read(Path::new("Cargo.toml")).lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies && line.contains('=') && !line.trim_start().starts_with('#') && !line.contains(" # ") {
            writeln!(complaints, "Cargo.toml:{}: add a comment at the end of the line: what does this dependency save us?", number + 1)
                .expect("a string");
        }
    }
    verdict(complaints);
}

/// What a part of the crate that is used alone never builds: rings, cryptography, a command line. With what that is by name.
const NOT_ALONE: &[(&str, &[&str])] = &[
    ("bus", &["io-uring", "libc", "mio", "socket2", "rustls", "ring", "async-nats", "tungstenite", "clap", "toml", "monoio", "serde_json"]),
    (
        "client",
        &[
            "io-uring",
            "rustls",
            "ring",
            "native-tls",
            "async-nats",
            "clap",
            "toml",
            "monoio",
            "prometheus-client",
            "mimalloc",
            "rtrb",
            "crossbeam-channel",
        ],
    ),
    ("nats", &["io-uring", "httparse", "tungstenite", "clap", "toml", "monoio", "prometheus-client", "mimalloc", "rtrb"]),
];

#[test]
fn a_part_used_alone_builds_only_what_it_needs() {
    let mut complaints = String::new();
    for (feature, unwanted) in NOT_ALONE {
        let mut tree = std::process::Command::new(env!("CARGO"));
        tree.current_dir(root()).args([
            "tree",
            "--no-default-features",
            "--features",
            feature,
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ]);
        let tree = tree.output().expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8(tree.stdout).expect("text");
        let built: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(built.contains(&"shardcast") && built.len() > 2, "this is no tree: {tree}");
        for name in built.iter().filter(|name| unwanted.contains(name)) {
            writeln!(
                complaints,
                "--no-default-features --features {feature} builds {name}; make what needs it a feature of its own (Cargo.toml)"
            )
            .expect("a string");
        }
    }
    verdict(complaints);
}

#[test]
fn a_decision_fits_a_screen_and_has_a_number() {
    let mut complaints = String::new();
    for path in files("docs/decisions", "md") {
        let lines = read(&path).lines().count();
        if lines >= DECISION_LINES_MAX {
            writeln!(complaints, "{} has {lines} lines; keep a decision under {DECISION_LINES_MAX}: context, choice, alternatives with figures, what would change our mind", path.display()).expect("a string");
        }
        let name = path.file_name().expect("a file").to_str().expect("a plain name");
        let numbered = name.len() > 5 && name.as_bytes()[..4].iter().all(u8::is_ascii_digit) && name.as_bytes()[4] == b'-';
        if !numbered && name != "README.md" {
            writeln!(complaints, "{}: name it NNNN-what-was-chosen.md", path.display()).expect("a string");
        }
    }
    verdict(complaints);
}

#[test]
fn the_rules_themselves_see_what_they_should() {
    let names = |text: &str| {
        names_after(&code(text), "crate::").into_iter().map(|(line, name)| format!("{line}:{name}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("use crate::engine::log;\nlet x = crate::hub::f();"), "1:engine 2:hub");
    assert_eq!(names("use crate::{\n    engine::{a, b},\n    hub,\n    time::Time,\n};"), "2:engine 3:hub 4:time");
    assert_eq!(names("// use crate::engine;\n//! [`crate::hub`]\nmy_crate::x(); $crate::y()"), "3:y");
    assert_eq!(module(Path::new("src/hub/topic.rs")).as_deref(), Some("hub"));
    assert_eq!(module(Path::new("src/limits.rs")).as_deref(), Some("limits"));
    assert_eq!(module(Path::new("src/main.rs")), None);
}
