//! Which TCP connections and listeners this machine has, from `/proc/net/tcp` and `tcp6`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";

/// The usual port of ssh.
const SSH_PORT: u16 = 22;

/// What of this machine's sockets concerns a guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Ports that are listened on, sorted.
    pub listening: Vec<u16>,
    /// Who is connected by ssh, sorted.
    pub ssh_peers: Vec<IpAddr>,
    /// The local ports that they are connected to, sorted.
    pub ssh_ports: Vec<u16>,
}

/// Looks at this machine. `ssh_connection` is what ssh puts into the environment of that name: with it a
/// port other than 22 is known. A machine without `/proc` has no sockets.
#[must_use]
pub fn sockets(ssh_connection: Option<&str>) -> Sockets {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let tables = [read("/proc/net/tcp"), read("/proc/net/tcp6")];
    from_tables(&tables, ssh_connection)
}

fn from_tables(tables: &[String], ssh_connection: Option<&str>) -> Sockets {
    // SSH_CONNECTION is: peer, its port, this machine, its port.
    let typed = ssh_connection.and_then(|text| text.split_whitespace().nth(3)?.parse().ok());
    let is_ssh = |port: u16| port == SSH_PORT || Some(port) == typed;
    let mut found = Sockets::default();
    for line in tables.iter().flat_map(|table| table.lines().skip(1)) {
        let Some((local, remote, state)) = read_line(line) else { continue };
        if state == LISTENING {
            found.listening.push(local);
        } else if state == ESTABLISHED && is_ssh(local) && !remote.is_loopback() {
            found.ssh_peers.push(remote);
            found.ssh_ports.push(local);
        }
    }
    found.listening.sort_unstable();
    found.listening.dedup();
    found.ssh_peers.sort_unstable();
    found.ssh_peers.dedup();
    found.ssh_ports.sort_unstable();
    found.ssh_ports.dedup();
    found
}

/// The local port, the peer and the state of `  0: LOCAL:PORT REMOTE:PORT STATE …`.
fn read_line(line: &str) -> Option<(u16, IpAddr, &str)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    let (_, port) = local.split_once(':')?;
    let (address, _) = remote.split_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, read_address(address)?, state))
}

/// Words of 32 bits in the machine's order, each of them an address part in the network's.
fn read_address(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(Ipv6Addr::from(v6).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(address: IpAddr) -> String {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let word = |word: &[u8]| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap()));
        bytes.chunks(4).map(word).collect()
    }

    fn line(local: u16, remote: &str, state: &str) -> String {
        let remote: IpAddr = remote.parse().unwrap();
        let any = "0".repeat(if remote.is_ipv4() { 8 } else { 32 });
        format!("   0: {any}:{local:04X} {}:C001 {state} 00000000:00000000 00:0", hex(remote))
    }

    #[test]
    fn listeners_and_ssh_peers_are_told_apart() {
        let tables = [
            [
                "header".to_owned(),
                line(22, "0.0.0.0", LISTENING),
                line(22, "192.0.2.7", ESTABLISHED),
            ]
            .join("\n"),
            [
                "header".to_owned(),
                line(8080, "::", LISTENING),
                line(2222, "2001:db8::7", ESTABLISHED),
                line(22, "::ffff:192.0.2.8", ESTABLISHED),
                line(22, "::1", ESTABLISHED),
                line(8080, "2001:db8::8", ESTABLISHED),
                "not a line".to_owned(),
            ]
            .join("\n"),
        ];

        let usual = from_tables(&tables, None);
        assert_eq!(usual.listening, [22, 8080]);
        let peers: Vec<String> = usual.ssh_peers.iter().map(ToString::to_string).collect();
        assert_eq!(peers, ["192.0.2.7", "192.0.2.8"]);

        let typed = from_tables(&tables, Some("2001:db8::7 50000 2001:db8::1 2222"));
        assert_eq!(typed.ssh_ports, [22, 2222]);
        assert_eq!(typed.ssh_peers.len(), 3);
    }
}
