//! Files for browsers that ship inside the binary: the client, and a page that shows and tries the gateway with it.
#![forbid(unsafe_code)]

use crate::gateway::Page;

/// All of them.
pub const PAGES: &[Page] = &[
    Page { path: "/", media_type: "text/html; charset=utf-8", body: include_str!("index.html"), shared: false },
    Page { path: "/page.css", media_type: "text/css; charset=utf-8", body: include_str!("page.css"), shared: false },
    Page { path: "/page.js", media_type: "text/javascript; charset=utf-8", body: include_str!("page.js"), shared: false },
    Page { path: "/shardcast.js", media_type: "text/javascript; charset=utf-8", body: include_str!("shardcast.js"), shared: true },
    // A text, so that a browser shows it: what is called TypeScript is offered as a download, or taken for video.
    Page { path: "/shardcast.d.ts", media_type: "text/plain; charset=utf-8", body: include_str!("shardcast.d.ts"), shared: true },
];
