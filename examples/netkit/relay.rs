//! A router that loses, doubles and reorders: what `netem` does where a kernel has it.
//!
//! It takes the frames that come to its machine for others, as a router does, and sends each on to its
//! owner. Unlike a router it leaves TTL, TOS and addresses as they are, so that nobody can tell. Large
//! frames of the kernel's offloads are cut into their datagrams first, so that each meets its fate
//! alone. All chance comes from a seed.

mod frame;

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::report::{self, File};
use frame::{Frame, VNET_LEN};

/// The device that every machine of a world has.
const DEVICE: &str = "eth0";

/// `ETH_P_ALL` in the byte order of the network.
const EVERYTHING: u16 = (libc::ETH_P_ALL as u16).to_be();

/// How long a datagram is held back when no other comes that could overtake it.
const HELD_MAX: Duration = Duration::from_millis(10);

/// Of how many datagrams at most one is overtaken.
const OVERTAKERS_MAX: u64 = 5;

/// An Ethernet address.
type Mac = [u8; 6];

/// What happens to datagrams: how many of 1000 are lost, doubled, and held back; and how long an IP
/// packet may be.
pub(crate) struct Impairment {
    pub(crate) seed: u64,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) reordering: u64,
    pub(crate) mtu: usize,
}

/// Relays until killed; counts into `file`. `owners` are `ADDRESS=MAC`; those of this machine first.
pub(crate) fn run(file: &str, impairment: &Impairment, owners: &[String]) -> Result<()> {
    let mut owner_of = BTreeMap::<IpAddr, Mac>::new();
    let mut own_mac = None;
    for pair in owners {
        let (address, mac) = pair.split_once('=').with_context(|| format!("`{pair}`"))?;
        let mac = parse_mac(mac)?;
        own_mac = own_mac.or(Some(mac));
        owner_of.insert(address.parse().with_context(|| format!("`{address}`"))?, mac);
    }
    let own_mac = own_mac.context("nobody to relay for")?;
    let mut relay = Relay {
        socket: open()?,
        own_mac,
        owner_of,
        chance: Chance(impairment.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        held: Vec::new(),
        counts: Counts::default(),
    };
    relay.socket.set_read_timeout(Some(HELD_MAX))?;
    let mut file = File::new(file);
    file.write(&relay.counts.json())?;
    report::ready();
    let mut buffer = vec![0; VNET_LEN + 70_000];
    loop {
        match relay.socket.read(&mut buffer) {
            Ok(length) => relay.take(&buffer[..length], impairment)?,
            Err(error) if report::is_timeout(&error) => relay.release(true)?,
            Err(error) => return Err(error.into()),
        }
        file.update(|| relay.counts.json())?;
    }
}

#[derive(Default)]
struct Counts {
    arrived: u64,
    lost: u64,
    doubled: u64,
    reordered: u64,
    too_big: u64,
    sent: u64,
    /// Large frames, which became several of the above.
    large: u64,
}

impl Counts {
    fn json(&self) -> Value {
        json!({
            "arrived": self.arrived,
            "lost": self.lost,
            "doubled": self.doubled,
            "reordered": self.reordered,
            "tooBig": self.too_big,
            "sent": self.sent,
            "large": self.large,
        })
    }
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % limit
    }
}

struct Relay {
    socket: Socket,
    own_mac: Mac,
    owner_of: BTreeMap<IpAddr, Mac>,
    chance: Chance,
    /// Datagrams that are held back, with how many shall still overtake each.
    held: Vec<(u64, Vec<u8>)>,
    counts: Counts,
}

impl Relay {
    /// Handles one frame as the device brought it, behind its offload header.
    fn take(&mut self, bytes: &[u8], impairment: &Impairment) -> Result<()> {
        let Some(frame) = Frame::read(bytes) else { return Ok(()) };
        if frame.destination_mac() != self.own_mac {
            return Ok(());
        }
        let Some(owner) = self.owner_of.get(&frame.destination()).copied() else { return Ok(()) };
        if owner == self.own_mac {
            return Ok(());
        }
        let datagrams = frame.datagrams();
        self.counts.large += u64::from(datagrams.len() > 1);
        for mut datagram in datagrams {
            self.counts.arrived += 1;
            if frame::ip_len(&datagram) > impairment.mtu {
                self.counts.too_big += 1;
                self.say_too_big(&datagram, impairment.mtu)?;
                continue;
            }
            frame::address(&mut datagram, owner, self.own_mac);
            self.impair(datagram, impairment)?;
        }
        Ok(())
    }

    fn impair(&mut self, datagram: Vec<u8>, impairment: &Impairment) -> Result<()> {
        let fate = self.chance.below(1000);
        let (doubled, held) = (
            impairment.loss + impairment.duplication,
            impairment.loss + impairment.duplication + impairment.reordering,
        );
        if fate < impairment.loss {
            self.counts.lost += 1;
            return Ok(());
        }
        if (doubled..held).contains(&fate) {
            self.counts.reordered += 1;
            let overtakers = 1 + self.chance.below(OVERTAKERS_MAX);
            self.held.push((overtakers, datagram));
            return Ok(());
        }
        self.send(&datagram)?;
        if fate < doubled {
            self.counts.doubled += 1;
            self.send(&datagram)?;
        }
        self.release(false)
    }

    /// Sends what was overtaken by enough, or everything that is held.
    fn release(&mut self, all: bool) -> Result<()> {
        for (overtakers, _) in &mut self.held {
            *overtakers = overtakers.saturating_sub(1);
        }
        let (out, held) =
            std::mem::take(&mut self.held).into_iter().partition(|(left, _)| all || *left == 0);
        self.held = held;
        let out: Vec<(u64, Vec<u8>)> = out;
        out.iter().try_for_each(|(_, datagram)| self.send(datagram))
    }

    fn send(&mut self, datagram: &[u8]) -> Result<()> {
        self.transmit(datagram)?;
        self.counts.sent += 1;
        Ok(())
    }

    /// As a router says that a packet is too large for the next link (RFC 1191, RFC 8201).
    fn say_too_big(&mut self, datagram: &[u8], mtu: usize) -> Result<()> {
        let is_v4 = frame::is_v4(datagram);
        let own = self
            .owner_of
            .iter()
            .find(|(address, mac)| **mac == self.own_mac && address.is_ipv4() == is_v4);
        let Some((own, _)) = own else { return Ok(()) };
        match frame::too_big(datagram, *own, mtu) {
            Some(answer) => self.transmit(&answer),
            None => Ok(()),
        }
    }

    fn transmit(&mut self, datagram: &[u8]) -> Result<()> {
        let framed = [&[0; VNET_LEN], datagram].concat();
        self.socket.write(&framed).map(drop).context("cannot send a frame")
    }
}

/// `aa:bb:cc:dd:ee:ff`.
fn parse_mac(text: &str) -> Result<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().with_context(|| format!("`{text}` is no Ethernet address"))?;
        *byte = u8::from_str_radix(part, 16)?;
    }
    Ok(mac)
}

/// A packet socket on the device: whole frames, each behind the header that says what the kernel left
/// to a network card.
fn open() -> Result<Socket> {
    let protocol = Protocol::from(i32::from(EVERYTHING));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
        .context("cannot open a packet socket (run as root or grant CAP_NET_RAW)")?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        switch_on(&socket, option)?;
    }
    socket.bind(&device_address()?).with_context(|| format!("cannot bind to {DEVICE}"))?;
    socket.set_recv_buffer_size(4 << 20)?;
    Ok(socket)
}

#[allow(unsafe_code, reason = "no safe interface sets these options of packet sockets")]
fn switch_on(socket: &Socket, option: libc::c_int) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of `on`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result != 0 {
        bail!("packet socket option {option}: {}", io::Error::last_os_error());
    }
    Ok(())
}

#[allow(unsafe_code, reason = "no safe interface makes an address of a packet socket")]
fn device_address() -> Result<SockAddr> {
    let name = std::ffi::CString::new(DEVICE)?;
    // SAFETY: `name` is a C string that lives until after the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        bail!("there is no device {DEVICE}: {}", io::Error::last_os_error());
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: EVERYTHING,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let init = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: the storage is aligned and large enough for every kind of address.
        unsafe { storage.cast::<libc::sockaddr_ll>().write(address) };
        // SAFETY: the length is valid to write.
        unsafe { length.write(size_of_val(&address) as libc::socklen_t) };
        Ok(())
    };
    // SAFETY: `init` writes a whole address of the family that it names, and its length.
    let ((), address) = unsafe { SockAddr::try_init(init) }?;
    Ok(address)
}
