//! Files for browsers that ship inside the binary: the client, and a page that shows and tries the gateway with it.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::Arc;

use crate::gateway::Page;

/// All of them.
pub fn pages() -> Arc<[Page]> {
    let own = |path, media_type, text| Page { path, media_type, body: Cow::Borrowed(text), shared: false };
    let shared = |path, media_type, body| Page { path, media_type, body, shared: true };
    Arc::new([
        own("/", "text/html; charset=utf-8", include_str!("index.html")),
        own("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
        own("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
        shared("/shardcast.js", "text/javascript; charset=utf-8", Cow::Owned(condensed(include_str!("shardcast.js")))),
        // A text, so that a browser shows it: what is called TypeScript is offered as a download, or taken for video.
        shared("/shardcast.d.ts", "text/plain; charset=utf-8", Cow::Borrowed(include_str!("shardcast.d.ts"))),
    ])
}

/// A script without its `//` comments, of whole lines or behind a statement, without indentation, and without spaces that part no two words. Not a parser: it
/// is for our own script, which has no comment inside a string, no text of several lines, no quote and no space inside a regular expression, and nothing
/// that two signs would mean without the space between them.
fn condensed(script: &str) -> String {
    let mut out = String::with_capacity(script.len());
    for line in script.lines() {
        let line = line.split_once("; // ").map_or(line, |(statement, _)| &line[..=statement.len()]).trim();
        if !line.is_empty() && !line.starts_with("//") {
            push_without_spaces(&mut out, line);
            out.push('\n');
        }
    }
    out
}

fn push_without_spaces(out: &mut String, line: &str) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_$".contains(c);
    let mut quote = None;
    let mut before = ' ';
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ' ' && quote.is_none() && !(is_word(before) && chars.peek().is_some_and(|&next| is_word(next))) {
            continue;
        }
        match quote {
            None if "\"'`".contains(c) => quote = Some(c),
            Some(mark) if mark == c => quote = None,
            _ => {}
        }
        out.push(c);
        before = c;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_indentation_and_idle_spaces_are_left_out_and_nothing_else() {
        let script = "// a\n\nlet a = 1; // b\n  // c\n  let b = \"http: //c\"; d(); // e; // f\n}\n  return `${a} - 'b` in [x, y] ? 'c d' : typeof e;\n";
        assert_eq!(condensed(script), "let a=1;\nlet b=\"http: //c\";d();\n}\nreturn`${a} - 'b`in[x,y]?'c d':typeof e;\n");
    }

    #[test]
    fn the_client_has_nothing_that_a_space_keeps_apart() {
        let signs = |text: &str| text.contains("+ +") || text.contains("- -") || text.contains("\\\"");
        for line in include_str!("shardcast.js").lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(!signs(line), "{line}");
        }
    }
}
