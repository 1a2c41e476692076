//! A release tree over HTTP, for the bench, the demo and the tests. Production can use any
//! static server; this one is axum's, with range requests and the cache headers that `docs/release-format.md` asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use tower_http::services::ServeDir;

use crate::invocation::program;
use crate::paths::Paths;
use crate::station::Station;

/// Objects are named by their digest and never change.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// The manifest and its signature change with every release.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// Every address of this host, and the port that web servers are tried on.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);

/// Counters of what a server has answered so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Number of requests.
    pub requests: AtomicU64,
    /// Bytes of response bodies as announced.
    pub body_bytes: AtomicU64,
}

/// A running server; it stops when this is dropped.
pub struct Server {
    /// Address the server listens on.
    pub address: SocketAddr,
    /// Counters of what the server has answered.
    pub counters: Arc<Counters>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Root of the tree. Default: release, where everything built goes.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Address and port. Default: 0.0.0.0:8080.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Take what machines post at /report, and show it at /station (docs/station.md).
    #[arg(long)]
    station: bool,
    /// Add what machines post to this file, a line each, for `rollout watch`.
    #[arg(long, value_name = "FILE", requires = "station")]
    keep_reports: Option<PathBuf>,
}

/// Options of a server.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Whether each request for a file is printed.
    pub log: bool,
    /// Whether the posts of machines are taken at `/report` and shown at `/station`.
    pub station: bool,
    /// File to which each post is added, if posts are taken.
    pub keep_reports: Option<PathBuf>,
}

/// Serves the tree `root` on `listen` (port 0 takes a free one) in the background. `log` prints each request.
///
/// # Errors
/// When the address is taken or the tree is not there.
pub fn start(root: &Path, listen: SocketAddr, log: bool) -> Result<Server> {
    start_with(root, listen, &ServeOptions { log, ..ServeOptions::default() })
}

/// Serves the tree `root` on `listen` in the background, with all options.
///
/// # Errors
/// When the address is taken or the tree is not there.
pub fn start_with(root: &Path, listen: SocketAddr, options: &ServeOptions) -> Result<Server> {
    let tree = root.display();
    anyhow::ensure!(root.is_dir(), "{tree} is not a directory; make a release first: {} release", program());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let counters = Arc::new(Counters::default());
    let shared = Shared { counters: Arc::clone(&counters), log: options.log };
    let mut app = Router::new()
        .fallback_service(ServeDir::new(root).append_index_html_on_directories(false))
        .layer(middleware::from_fn_with_state(shared, headers_and_count));
    if options.station {
        let station = options.keep_reports.as_deref().map_or_else(|| Ok(Station::default()), Station::keeping)?;
        app = app.merge(Arc::new(station).routes());
    }
    let listener = std::net::TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    runtime.spawn(async move {
        if let Err(error) = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await {
            eprintln!("server on {address}: {error}");
        }
    });
    Ok(Server { address, counters, runtime: Some(runtime) })
}

/// Serves as the command line says, until interrupted.
///
/// # Errors
/// When the address is taken or the tree is not there.
pub fn run(args: ServeArgs, paths: &Paths) -> Result<()> {
    let root = args.dir.unwrap_or_else(|| paths.dist().join("release"));
    let listen = args.listen.unwrap_or(DEFAULT_LISTEN);
    let options = ServeOptions { log: true, station: args.station, keep_reports: args.keep_reports };
    let server = start_with(&root, listen, &options)?;
    eprintln!("  serving {} on http://{}/", root.display(), server.address);
    if args.station {
        eprintln!(
            "  machines whose report.url is http://{}/report are shown on http://{}/station",
            server.address, server.address
        );
    }
    loop {
        std::thread::park();
    }
}

#[derive(Clone)]
struct Shared {
    counters: Arc<Counters>,
    log: bool,
}

async fn headers_and_count(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE).and_then(|range| range.to_str().ok()).unwrap_or("").to_owned();
    let mut response = next.run(request).await;
    let policy = if path.starts_with("/objects/") { IMMUTABLE } else { REVALIDATE };
    if response.status().is_success() {
        response.headers_mut().insert(header::CACHE_CONTROL, policy);
    }
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    shared.counters.requests.fetch_add(1, Ordering::Relaxed);
    shared.counters.body_bytes.fetch_add(length, Ordering::Relaxed);
    if shared.log {
        eprintln!("  {} {path} {range} {length} bytes", response.status().as_u16());
    }
    response
}
