//! A small HTTP server on this machine that answers as the Hugging Face hub does.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const REPO: &str = "org/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has, and how it misbehaves.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Requests without this token are refused.
    pub token: Option<String>,
    /// Closes the connection half-way through so many bodies of weights.
    pub cuts: usize,
    /// Ends the cut bodies as if they were whole.
    pub hides_cuts: bool,
    /// Method and path of every request, with the range asked for.
    pub log: Vec<String>,
}

/// Serves `files` as [`REPO`] until the test's process ends.
pub fn serve_repo(files: &[(&str, &[u8])]) -> (SocketAddr, Arc<Mutex<State>>) {
    let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
    let state = Arc::new(Mutex::new(State { files, ..State::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, shared) = (listener.local_addr().unwrap(), state.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves early is none of the server's business.
            let _ = answer(stream, &mut shared.lock().unwrap());
        }
    });
    (address, state)
}

/// Reads one request and answers it; every connection serves one.
fn answer(mut stream: TcpStream, state: &mut State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.get("range").cloned().unwrap_or_default();
    state.log.push(format!("{path} {range}"));
    if let Some(token) = &state.token
        && headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return respond(&mut stream, "401 Unauthorized", "", b"");
    }
    if path == format!("/api/models/{REPO}/revision/main") {
        let siblings: Vec<_> =
            state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return respond(&mut stream, "200 OK", "", info.as_bytes());
    }
    let name = path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/")).unwrap_or_default();
    match state.files.get(name).cloned() {
        Some(bytes) => serve(&mut stream, state, name, &bytes, &range),
        None => respond(&mut stream, "404 Not Found", "", b""),
    }
}

/// Answers a request for a range of a file.
fn serve(
    stream: &mut TcpStream,
    state: &mut State,
    name: &str,
    bytes: &[u8],
    range: &str,
) -> std::io::Result<()> {
    let (start, end) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1).min(bytes.len());
    if start >= end {
        return respond(stream, "416 Range Not Satisfiable", "", b"");
    }
    let etag: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let head = format!(
        "ETag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    let body = &bytes[start..end];
    if state.cuts > 0 && name.ends_with(".safetensors") && body.len() > 1 {
        state.cuts -= 1;
        let half = &body[..body.len() / 2];
        if state.hides_cuts {
            return respond(stream, "206 Partial Content", &head, half);
        }
        write!(stream, "HTTP/1.1 206 Partial Content\r\n{head}Content-Length: {}\r\n\r\n", body.len())?;
        return stream.write_all(half);
    }
    respond(stream, "206 Partial Content", &head, body)
}

fn respond(stream: &mut TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(body)
}
