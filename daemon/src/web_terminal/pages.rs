//! The page and what it needs, all of it from here: nothing is fetched from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::routes::Daemon;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Path, type, text.
const PAGES: [(&str, &str, &str); 6] = [
    ("/", HTML, include_str!("page.html")),
    ("/page.css", CSS, include_str!("page.css")),
    ("/page.js", JS, include_str!("page.js")),
    ("/xterm.css", CSS, include_str!("xterm/xterm.css")),
    ("/xterm.js", JS, include_str!("xterm/xterm.js")),
    ("/addon-fit.js", JS, include_str!("xterm/addon-fit.js")),
];

/// The emulator makes style elements of its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'";

pub fn routes() -> Router<Arc<Daemon>> {
    PAGES.into_iter().fold(Router::new(), |router, (path, content_type, text)| {
        router.route(path, get(move || std::future::ready(page(content_type, text))))
    })
}

fn page(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
