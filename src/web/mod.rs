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
        shared("/shardcast.js", "text/javascript; charset=utf-8", Cow::Owned(without_comments(include_str!("shardcast.js")))),
        // A text, so that a browser shows it: what is called TypeScript is offered as a download, or taken for video.
        shared("/shardcast.d.ts", "text/plain; charset=utf-8", Cow::Borrowed(include_str!("shardcast.d.ts"))),
    ])
}

/// A script without its `//` comments, of whole lines or behind a statement, and without indentation. Not a parser: it is for our own script, which has
/// no such thing inside a string, and no text of several lines.
fn without_comments(script: &str) -> String {
    let mut out = String::with_capacity(script.len());
    for line in script.lines() {
        let line = line.split_once("; // ").map_or(line, |(statement, _)| &line[..=statement.len()]).trim();
        if !line.is_empty() && !line.starts_with("//") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_are_left_out_and_nothing_else() {
        let script = "// a\n\nlet a = 1; // b\n  // c\n  let b = \"http://c\"; d(); // e; // f\n}\n";
        assert_eq!(without_comments(script), "let a = 1;\nlet b = \"http://c\"; d();\n}\n");
    }
}
