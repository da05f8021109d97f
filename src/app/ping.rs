//! `ovd ping`: what is sent and what comes back; `cli::ping` asks the daemon and says how it went.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::node;
use crate::api::Problem;
use crate::cli::args::PingArgs;
use crate::cli::output::Output;
use crate::cli::ping::{self as command, Reply};
use crate::sys::echo::Echo;

/// How long an answer may take, and how far apart two requests are.
const PACE: Duration = Duration::from_secs(1);

/// Does what was typed.
pub(super) fn run(args: &PingArgs) -> ExitCode {
    let mut output = Output::standard(args.output);
    let mut pinger = Pinger { echo: None, next: tokio::time::Instant::now() };
    let ask = async |to: IpAddr, port: Option<u16>| pinger.ask(to, port).await;
    let outcome =
        node::runtime().and_then(|runtime| runtime.block_on(command::run(&mut output, args, ask)));
    node::conclude(&mut output, outcome)
}

struct Pinger {
    echo: Option<Echo>,
    next: tokio::time::Instant,
}

impl Pinger {
    /// Asks once, when it is time: by TCP where a port is given, else by ICMP echo.
    async fn ask(&mut self, to: IpAddr, port: Option<u16>) -> Result<Reply, Problem> {
        tokio::time::sleep_until(self.next).await;
        self.next = tokio::time::Instant::now() + PACE;
        if let Some(port) = port {
            let begun = Instant::now();
            let opened = TcpStream::connect_timeout(&SocketAddr::new(to, port), PACE);
            return Ok(reply(opened.map(|_| begun.elapsed()), begun));
        }
        let echo = match &mut self.echo {
            Some(echo) => echo,
            none => none.insert(Echo::open(to).map_err(node::failed)?),
        };
        let begun = Instant::now();
        Ok(reply(echo.ask(PACE), begun))
    }
}

fn reply(answered: io::Result<Duration>, begun: Instant) -> Reply {
    match answered {
        Ok(took) => Reply::Answer(took),
        Err(error) if error.kind() == ErrorKind::TimedOut => Reply::None,
        Err(error) => Reply::Refusal(begun.elapsed(), error.to_string()),
    }
}
