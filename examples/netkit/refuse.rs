//! Runs a program as if the kernel were an older one: a filter of system calls refuses what that one
//! does not know. The program keeps its process number, and its children inherit the filter.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use libc::sock_filter;

/// `TUNSETOFFLOAD`, `if_tun.h`.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;

// Where `struct seccomp_data` (`linux/seccomp.h`) has the low halves of what is looked at.
const NUMBER: u32 = 0;
const ARGUMENT_1: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };
const ARGUMENT_2: u32 = ARGUMENT_1 + 8;

/// A system call that is refused.
struct Refusal {
    call: libc::c_long,
    /// What the second argument has to be.
    second: u32,
    /// How the third is looked at, and against what.
    test: u32,
    third: u32,
    errno: i32,
}

impl Refusal {
    /// `udp-segment`, `udp-gro`, or `tun-offload:BITS`: any of these `TUN_F_…`, in hexadecimal digits.
    fn parse(word: &str) -> Result<Self> {
        let option = |name: libc::c_int| Self {
            call: libc::SYS_setsockopt,
            second: libc::SOL_UDP as u32,
            test: libc::BPF_JEQ,
            third: name as u32,
            errno: libc::ENOPROTOOPT,
        };
        Ok(match word.split_once(':') {
            None if word == "udp-segment" => option(libc::UDP_SEGMENT),
            None if word == "udp-gro" => option(libc::UDP_GRO),
            Some(("tun-offload", bits)) => Self {
                call: libc::SYS_ioctl,
                second: TUNSETOFFLOAD,
                test: libc::BPF_JSET,
                third: u32::from_str_radix(bits, 16).with_context(|| bits.to_owned())?,
                errno: libc::EINVAL,
            },
            _ => bail!("`{word}` is nothing that can be refused"),
        })
    }

    /// Loads what it looks at anew each time, so that it can stand after any other.
    fn program(&self) -> [sock_filter; 7] {
        let refuse = libc::SECCOMP_RET_ERRNO | self.errno as u32;
        [
            load(NUMBER),
            unless(libc::BPF_JEQ, self.call as u32, 5),
            load(ARGUMENT_1),
            unless(libc::BPF_JEQ, self.second, 3),
            load(ARGUMENT_2),
            unless(self.test, self.third, 1),
            statement(libc::BPF_RET | libc::BPF_K, refuse),
        ]
    }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Leaves out `skip` statements unless the test holds.
fn unless(test: u32, k: u32, skip: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: 0, jf: skip, k }
}

/// Becomes `program`, with these refusals (separated by commas) in force.
pub(crate) fn run(refusals: &str, program: &[String]) -> Result<()> {
    let mut filter = Vec::new();
    for word in refusals.split(',') {
        filter.extend(Refusal::parse(word)?.program());
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    install(&mut filter)?;
    let (name, arguments) = program.split_first().context("no program")?;
    let error = Command::new(name).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {name}"))
}

#[allow(unsafe_code, reason = "no safe interface installs a filter")]
fn install(filter: &mut [sock_filter]) -> Result<()> {
    let program = libc::sock_fprog { len: filter.len().try_into()?, filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only; a filter may be installed by who gives up new rights.
    let given_up = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if given_up != 0 || installed != 0 {
        return Err(std::io::Error::last_os_error()).context("no filter of system calls");
    }
    Ok(())
}
