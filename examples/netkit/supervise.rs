//! Plays a service manager: starts a program again whenever it ends, and keeps descriptors for it
//! (`sd_notify(3)`, `FDSTORE=1`) that the next start gets (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ovmesh::sys::descriptors;

/// How often it is looked whether the program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Where descriptors are put aside before they get their numbers.
const ASIDE: RawFd = 900;

/// The first descriptor that a program is started with.
const FIRST: RawFd = 3;

/// The last signal that asked for something; 0 for none.
static ASKED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    ASKED.store(signal, Ordering::Relaxed);
}

/// Runs until SIGTERM.
pub(crate) fn run(how: &str, program: &[String]) -> Result<()> {
    let keeps = match how {
        "keeping" => true,
        "forgetting" => false,
        _ => bail!("keeping or forgetting, not {how}"),
    };
    let name = format!("netkit-supervise-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    [libc::SIGHUP, libc::SIGUSR1, libc::SIGTERM].into_iter().for_each(handle);
    let mut kept: Vec<(String, OwnedFd)> = Vec::new();
    let mut child = start(program, &name, &kept)?;
    let mut is_ending = false;
    loop {
        hear(&socket, keeps, &mut kept);
        match ASKED.swap(0, Ordering::Relaxed) {
            libc::SIGHUP => send(&child, libc::SIGTERM),
            libc::SIGUSR1 => send(&child, libc::SIGKILL),
            libc::SIGTERM => {
                is_ending = true;
                send(&child, libc::SIGTERM);
            }
            _ => {}
        }
        if child.try_wait()?.is_some() {
            if is_ending {
                return Ok(());
            }
            // What it said last.
            while hear(&socket, keeps, &mut kept) {}
            child = start(program, &name, &kept)?;
        }
    }
}

/// Does what one message says; false when there was none.
fn hear(socket: &UnixDatagram, keeps: bool, kept: &mut Vec<(String, OwnedFd)>) -> bool {
    let mut room = [0; 4096];
    let Ok((len, descriptor)) = descriptors::receive_with(socket, &mut room) else { return false };
    let text = String::from_utf8_lossy(&room[..len]).into_owned();
    let find = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let name = find("FDNAME=").unwrap_or("stored").to_owned();
    if find("FDSTOREREMOVE=") == Some("1") {
        kept.retain(|(other, _)| *other != name);
    }
    if find("FDSTORE=") == Some("1")
        && keeps
        && let Some(descriptor) = descriptor
    {
        kept.push((name, descriptor));
    }
    true
}

fn start(program: &[String], socket: &str, kept: &[(String, OwnedFd)]) -> Result<Child> {
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let numbers: Vec<RawFd> = kept.iter().map(|(_, one)| one.as_fd().as_raw_fd()).collect();
    let mut command = Command::new("sh");
    command
        .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
        .args(program)
        .env("NOTIFY_SOCKET", format!("@{socket}"))
        .env("LISTEN_FDS", names.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    give(&mut command, numbers);
    let child = command.spawn().context("cannot start the program")?;
    println!("supervise: a start with {} descriptors", names.len());
    Ok(child)
}

#[allow(unsafe_code, reason = "no safe interface numbers descriptors")]
fn give(command: &mut Command, numbers: Vec<RawFd>) {
    let number = move || {
        let mut aside = [0; 256];
        for (aside, &number) in aside.iter_mut().zip(&numbers) {
            // SAFETY: takes numbers only; the copy is closed when the program is executed.
            *aside = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, ASIDE) };
        }
        for (number, &aside) in (FIRST..).zip(aside.iter().take(numbers.len())) {
            // SAFETY: takes numbers only; nothing of this process after its fork uses what was there.
            if unsafe { libc::dup2(aside, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls that are safe there, and allocates nothing.
    unsafe { command.pre_exec(number) };
}

#[allow(unsafe_code, reason = "no safe interface sends or handles signals")]
fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: takes numbers only; the child has not been waited for.
    let _ = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

#[allow(unsafe_code, reason = "no safe interface sends or handles signals")]
fn handle(signal: libc::c_int) {
    let handler = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler stores one atomic, which is safe wherever it interrupts.
    let _ = unsafe { libc::signal(signal, handler) };
}
