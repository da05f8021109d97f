//! The health port of `ovd`: asks the program beside it, on loopback, for who may not reach it.
//!
//! In a pod, kubelet asks from the node and so from outside of the overlay, where the guard lets
//! nobody in. It asks this port instead; only the questions that were configured are passed on, and
//! only a verdict comes back, no content. One question a connection, HTTP/1.1, bounded in size, time
//! and number.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "questions must not panic"
    )
)]

mod http;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::types::{HealthQuestion, HealthTarget};
use http::Question;

/// How many questions are answered at a time; more are hung up on.
const AT_ONCE: usize = 64;

/// How long one may take. Who asks has a shorter patience of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a question may take to arrive.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// A health port that is bound.
#[derive(Debug)]
pub struct HealthPort {
    listener: TcpListener,
    targets: BTreeMap<String, HealthTarget>,
}

impl HealthPort {
    /// Binds `address`; `[::]` is every address of both families, also where there is no IPv6.
    ///
    /// # Errors
    ///
    /// When it cannot be bound.
    pub async fn bind(address: SocketAddr, targets: Vec<HealthTarget>) -> io::Result<Self> {
        let listener = match TcpListener::bind(address).await {
            Err(error)
                if address.ip() == Ipv6Addr::UNSPECIFIED
                    && error.kind() != io::ErrorKind::AddrInUse =>
            {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?
            }
            bound => bound?,
        };
        Ok(Self::over(listener, targets))
    }

    /// Takes over the socket of the process before this one. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it is bound to something else, or no socket.
    pub fn adopt(
        descriptor: OwnedFd,
        address: SocketAddr,
        targets: Vec<HealthTarget>,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(descriptor);
        if listener.local_addr()? != address {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        listener.set_nonblocking(true)?;
        Ok(Self::over(TcpListener::from_std(listener)?, targets))
    }

    fn over(listener: TcpListener, targets: Vec<HealthTarget>) -> Self {
        let targets = targets.into_iter().map(|target| (target.name.clone(), target)).collect();
        Self { listener, targets }
    }

    /// What the process after this one gets.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let targets = Arc::new(self.targets);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let targets = Arc::clone(&targets);
            tokio::spawn(async move {
                // Who hangs up or takes too long gets no answer.
                let _ = tokio::time::timeout(PATIENCE, answer(stream, &targets)).await;
                drop(place);
            });
        }
    }
}

async fn answer(mut stream: TcpStream, targets: &BTreeMap<String, HealthTarget>) -> io::Result<()> {
    let own_port = stream.local_addr()?.port();
    let head = tokio::time::timeout(HEAD_PATIENCE, read_head(&mut stream)).await??;
    let question = Question::parse(&head);
    let target = question.as_ref().and_then(|question| targets.get(question.name()));
    let (status, why) = match (&question, target) {
        (None, _) => (400, "this is no GET of HTTP/1.1".to_owned()),
        (Some(_), None) => (404, "nothing of that name is asked here".to_owned()),
        (Some(question), Some(target)) => match ask(question, target, own_port).await {
            // Where it leads to is not said, so it would only confuse who asks.
            Ok(200..=399) => (200, "ok".to_owned()),
            Ok(status) => (status, format!("the program answers {status}")),
            Err(error) => (503, format!("the program does not answer: {error}")),
        },
    };
    stream.write_all(http::response(status, &why).as_bytes()).await?;
    stream.shutdown().await
}

/// Reads up to the empty line, or as much as is looked at.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !http::is_whole(&head) && head.len() < http::HEAD_MAX {
        let mut part = [0; 1024];
        let len = stream.read(&mut part).await?;
        if len == 0 {
            break;
        }
        head.extend_from_slice(part.get(..len).unwrap_or(&[]));
    }
    Ok(head)
}

/// Asks the program; the status of its answer, or 200 for a connection that it takes.
async fn ask(question: &Question<'_>, target: &HealthTarget, own_port: u16) -> io::Result<u16> {
    let mut program = connect(target.port).await?;
    let HealthQuestion::Http(path) = &target.question else { return Ok(200) };
    program.write_all(&question.pass_on(path, own_port, target.port)).await?;
    let mut start = Vec::new();
    while !start.contains(&b'\n') && start.len() < http::STATUS_MAX {
        let mut part = [0; 256];
        let len = program.read(&mut part).await?;
        if len == 0 {
            break;
        }
        start.extend_from_slice(part.get(..len).unwrap_or(&[]));
    }
    http::status(&start)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its answer is no HTTP/1.1"))
}

/// Connects on loopback, in the family in which the program listens.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let v4 = TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await;
    match v4 {
        Ok(stream) => Ok(stream),
        Err(error) => {
            TcpStream::connect((IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await.map_err(|_| error)
        }
    }
}

#[cfg(test)]
mod tests;
