//! How a process asks the one before it, on the same socket, to be taken over: an HTTP request to leave
//! HTTP. What goes over the connection afterwards is up to who holds its ends.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::api::{Problem, ProblemCode};

/// What the connection becomes.
pub(super) const PROTOCOL: &str = "ovmesh-takeover";

/// How long the process before this one may take for a step.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read.
const HEAD_MAX: usize = 4096;

/// Asks the process that listens on `path` to be taken over. Returns the connection, on which it hands
/// over; none where no process listens there. Needs a tokio runtime.
///
/// # Errors
///
/// `Conflict` when it refuses; `Unauthorized` when it is another user's.
pub async fn ask_takeover(path: &Path) -> Result<Option<UnixStream>, Problem> {
    let what = || format!("cannot take over from who listens on {}", path.display());
    let failed =
        |error: io::Error| Problem::new(ProblemCode::Failed, what()).why(error.to_string());
    let is_nobody = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    };
    let stream = match tokio::net::UnixStream::connect(path).await {
        Err(error) if is_nobody(&error) => return Ok(None),
        connected => connected.map_err(failed)?,
    };
    let (own, _) = tokio::net::UnixStream::pair().map_err(failed)?;
    let own_uid = own.peer_cred().map_err(failed)?.uid();
    let uid = stream.peer_cred().map_err(failed)?.uid();
    if uid != 0 && uid != own_uid {
        return Err(Problem::new(ProblemCode::Unauthorized, what())
            .why(format!("it is a process of uid {uid}, and this one runs as uid {own_uid}")));
    }
    let mut stream = stream.into_std().map_err(failed)?;
    let head = switch(&mut stream).map_err(failed)?;
    if head.starts_with("HTTP/1.1 101 ") {
        return Ok(Some(stream));
    }
    let first = head.lines().next().unwrap_or_default();
    Err(Problem::new(ProblemCode::Conflict, what())
        .why(format!("it answers {first}"))
        .fix("a version that cannot hand over has to be stopped first"))
}

/// Sends the request and reads the head of the answer, to the byte: descriptors may come right behind.
fn switch(stream: &mut UnixStream) -> io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /v1/takeover HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\
         Content-Length: 0\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        if head.len() > HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::Socket;
    use super::*;
    use crate::api::local::{DenialList, LocalQuestion, LocalWhy, NodeStatus};
    use crate::types::HumanDuration;

    fn status() -> NodeStatus {
        unreachable!("nobody asks")
    }

    fn denied(_: Option<HumanDuration>) -> DenialList {
        unreachable!("nobody asks")
    }

    fn why(_: &LocalQuestion) -> Result<LocalWhy, Problem> {
        unreachable!("nobody asks")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_connection_leaves_http_and_has_two_ends() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ovd.sock");
        assert!(ask_takeover(&path).await.unwrap().is_none(), "nobody is there");

        let mut socket = Socket::bind(&path).unwrap();
        let (successors, mut asked) = mpsc::channel(1);
        let serving =
            tokio::spawn(async move { socket.serve(status, denied, why, None, successors).await });
        let mut ours = ask_takeover(&path).await.unwrap().unwrap();
        let mut theirs = asked.recv().await.unwrap();
        theirs.set_nonblocking(false).unwrap();
        theirs.write_all(b"x").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        ours.write_all(b"y").unwrap();
        theirs.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
        serving.abort();
    }
}
