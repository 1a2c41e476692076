//! Servers that answer what a test wants, which is mostly wrong, and a small forwarding proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// One step of an answer.
pub enum Act {
    /// These bytes.
    Send(Vec<u8>),
    /// Nothing for a while.
    Wait(Duration),
    /// The end of the connection; without it the connection stays open for the next request.
    Close,
    /// The end of the connection by a reset, which drops what is on its way.
    Reset,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// Counts the requests of this server from 0.
    pub number: usize,
    /// Counts the connections of this server from 0.
    pub connection: usize,
    /// Method, target and version.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// As long as its Content-Length says.
    pub body: Vec<u8>,
}

impl TestRequest {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path that was asked for, as it was sent.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// Runs until dropped. Every connection has its own thread.
pub struct TestServer {
    /// The address that the server listens on.
    pub address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<TestRequest>>>,
    stop: Arc<AtomicBool>,
}

impl TestServer {
    /// Starts a server that gives these answers.
    pub fn start(answer: impl Fn(&TestRequest) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::run("http", answer, |stream| Ok(Box::new(stream)))
    }

    /// Starts a server that speaks TLS and gives these answers.
    pub fn start_tls(
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(&TestRequest) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        Self::run("https", answer, move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
            Ok(Box::new(rustls::StreamOwned::new(connection, stream)))
        })
    }

    fn run(
        scheme: &'static str,
        answer: impl Fn(&TestRequest) -> Vec<Act> + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> std::io::Result<Box<dyn Stream>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), scheme, requests: Arc::default(), stop: Arc::default() };
        let (requests, stop) = (Arc::clone(&server.requests), Arc::clone(&server.stop));
        let shared = Arc::new((answer, wrap));
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (requests, shared) = (Arc::clone(&requests), Arc::clone(&shared));
                thread::spawn(move || {
                    let socket = stream.as_ref().ok().and_then(|stream| stream.try_clone().ok());
                    let (Some(socket), Ok(stream)) = (socket, stream.and_then(&shared.1)) else { return };
                    // Clients that hang up in the middle are part of most tests.
                    let _ = serve(connection, stream, &socket, &requests, &shared.0);
                });
            }
        });
        server
    }

    /// A base URL below this server.
    pub fn url(&self) -> String {
        format!("{}://{}/release", self.scheme, self.address)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<TestRequest> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn serve(
    connection: usize,
    stream: Box<dyn Stream>,
    socket: &TcpStream,
    requests: &Mutex<Vec<TestRequest>>,
    answer: &dyn Fn(&TestRequest) -> Vec<Act>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some((line, headers)) = head(&mut stream)? {
        let length =
            headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body)?;
        let request = {
            let mut requests = requests.lock().unwrap();
            let request = TestRequest { number: requests.len(), connection, line, headers, body };
            requests.push(request.clone());
            request
        };
        for act in answer(&request) {
            match act {
                Act::Send(bytes) => stream.get_mut().write_all(&bytes)?,
                Act::Wait(time) => {
                    stream.get_mut().flush()?;
                    thread::sleep(time);
                }
                Act::Close => return stream.get_mut().flush(),
                Act::Reset => {
                    stream.get_mut().flush()?;
                    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                    return nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &at_once)
                        .map_err(std::io::Error::from);
                }
            }
        }
        stream.get_mut().flush()?;
    }
    Ok(())
}

type Head = (String, Vec<(String, String)>);

fn head(stream: &mut impl BufRead) -> std::io::Result<Option<Head>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => return Ok(Some((line.trim_end().to_owned(), headers))),
        }
    }
}

/// A whole answer.
pub fn answer(status: &str, headers: &[&str], body: &[u8]) -> Act {
    let mut bytes = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for header in headers {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    Act::Send(bytes)
}

/// An answer without an object.
pub fn status(status: &str) -> Vec<Act> {
    vec![answer(status, &["Content-Length: 0"], b"")]
}

/// What a good server answers: the range asked for, or all.
pub fn object(request: &TestRequest, data: &[u8]) -> Vec<Act> {
    match request.range() {
        Some((first, last)) if last < data.len() => {
            let part = &data[first..=last];
            let length = format!("Content-Length: {}", part.len());
            let range = format!("Content-Range: bytes {first}-{last}/{}", data.len());
            vec![answer("206 Partial Content", &[&length, &range], part)]
        }
        Some(_) => status("416 Range Not Satisfiable"),
        None => vec![answer("200 OK", &[&format!("Content-Length: {}", data.len())], data)],
    }
}

/// A good answer that ends after `bytes` bytes of the body.
pub fn cut(request: &TestRequest, data: &[u8], bytes: usize) -> Vec<Act> {
    let mut acts = object(request, data);
    if let [Act::Send(whole)] = acts.as_mut_slice() {
        let body = whole.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        whole.truncate(body + bytes);
    }
    acts.push(Act::Close);
    acts
}

/// A forwarding proxy that sends every host to the same origin, as if it were the only one with a name server.
pub struct Proxy {
    /// The address that the proxy listens on.
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<TestRequest>>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts a proxy in front of `origin`.
    pub fn start(origin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), requests: Arc::default(), stop: Arc::default() };
        let (requests, stop) = (Arc::clone(&proxy.requests), Arc::clone(&proxy.stop));
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let requests = Arc::clone(&requests);
                thread::spawn(move || stream.and_then(|stream| forward(connection, stream, origin, &requests)));
            }
        });
        proxy
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<TestRequest> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn forward(
    connection: usize,
    client: TcpStream,
    origin: SocketAddr,
    requests: &Mutex<Vec<TestRequest>>,
) -> std::io::Result<()> {
    let mut to_client = client.try_clone()?;
    let mut client = BufReader::new(client);
    while let Some((line, headers)) = head(&mut client)? {
        let length =
            headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        client.read_exact(&mut body)?;
        let request = {
            let mut requests = requests.lock().unwrap();
            let request = TestRequest { number: requests.len(), connection, line, headers, body };
            requests.push(request.clone());
            request
        };
        let mut server = TcpStream::connect(origin)?;
        if request.line.starts_with("CONNECT ") {
            to_client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            let mut up = server.try_clone()?;
            thread::spawn(move || {
                let _ = std::io::copy(&mut client, &mut up);
                up.shutdown(Shutdown::Write)
            });
            std::io::copy(&mut server, &mut to_client)?;
            return to_client.shutdown(Shutdown::Write);
        }
        let Some((host, path)) = request.target().strip_prefix("http://").and_then(|rest| rest.split_once('/')) else {
            // What a proxy does with a request that is not for it.
            return to_client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let method = request.line.split(' ').next().unwrap_or_default();
        let mut upstream = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in request.headers.iter().filter(|(name, _)| name != "host" && !name.starts_with("proxy-")) {
            upstream.push_str(&format!("{name}: {value}\r\n"));
        }
        server.write_all(format!("{upstream}\r\n").as_bytes())?;
        server.write_all(&request.body)?;
        server.shutdown(Shutdown::Write)?;
        std::io::copy(&mut server, &mut to_client)?;
    }
    Ok(())
}
