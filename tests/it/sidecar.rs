//! Beside a service mesh: all TCP of a pod is redirected to a proxy, as Istio does, and what comes over an
//! overlay is judged before, what comes otherwise gets nowhere.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::guard::{Street, shell};
use crate::settled::settled;
use crate::support::{Counter, SOON, number, play};
use crate::world::poll;

/// What Istio's init container puts into a pod: every connection that comes in goes to one port of the proxy,
/// every one that a program opens to another; the proxy's own have a mark.
const REDIRECT: &str = "\
add table inet mesh
add chain inet mesh ISTIO_INBOUND { type nat hook prerouting priority -100; }
add rule inet mesh ISTIO_INBOUND meta l4proto tcp redirect to :15006
add chain inet mesh ISTIO_OUTPUT { type nat hook output priority -100; }
add rule inet mesh ISTIO_OUTPUT oifname \"lo\" return
add rule inet mesh ISTIO_OUTPUT meta mark 1337 return
add rule inet mesh ISTIO_OUTPUT meta l4proto tcp redirect to :15001
";

/// What a neighbour tries: the program, one that no rule names, the proxy itself, and the overlay address.
const FROM_THE_LAN: [&str; 6] = [
    "tcp/8080@B4",
    "tcp/8080@B6",
    "tcp/9999@B4",
    "tcp/9999@B6",
    "tcp/8080@OVERLAY",
    "tcp/9999@OVERLAY",
];

/// How many connections for a port a proxy has taken.
fn taken(proxy: &Counter, port: &str) -> Result<u64> {
    Ok(proxy.read()?["byPort"][port].as_u64().unwrap_or(0))
}

/// Waits until a proxy has taken one more for a port than `before`.
fn expect_taken(proxy: &Counter, port: &str, before: u64) -> Result<()> {
    poll(SOON, &format!("the proxy to take a connection for {port}"), || {
        Ok((taken(proxy, port)? > before).then_some(()))
    })
}

#[test]
fn what_a_mesh_redirects_has_passed_the_overlay_first() {
    play(&["s1"], &["a", "c"], |rig| {
        let street = Street::new(rig, &["--guard", "all"])?;
        let [a, c] = ["a", "c"].map(|name| street.rig.fleet.machine(name).cloned());
        let (a, c, b) = (a?, c?, street.b.clone());
        let services = ["probe-serve", "tcp/8080", "tcp/9999"];
        let _programs = [street.run(&b, &services)?, street.run(&a, &services)?];
        let inbound = street.rig.counter_on(&b, "proxy", &["15006"], &["inbound"])?;
        let outbound = street.rig.counter_on(&b, "proxy", &["15001"], &["outbound"])?;
        shell(&b, &format!("printf '%s' '{REDIRECT}' | nft -f -"))?;

        // Whoever may talk to the program is answered by it, through the proxy.
        street.expect_open(&a, &["tcp/8080@OVERLAY"])?;
        expect_taken(&inbound, "8080", 0)?;

        // Others are refused before the proxy: another member, another port, the proxy's own port, the LAN.
        let before = settled("the proxy", || number(&inbound.read()?, "connections"))?;
        for (from, ways) in [
            (&c, &["tcp/8080@OVERLAY"][..]),
            (&a, &["tcp/9999@OVERLAY", "tcp/15006@OVERLAY"]),
            (&street.x, &FROM_THE_LAN),
        ] {
            let open = street.answered(from, ways)?;
            ensure!(open.is_empty(), "{} reaches {open:?}", from.name);
        }
        let after: Value = inbound.read()?;
        ensure!(number(&after, "connections")? == before, "the proxy took some: {after}");

        // The controls: without the guard the LAN gets to the proxy, and with a rule another member does.
        street.ovd(&["guard", "off"])?;
        street.expect_open(&street.x, &FROM_THE_LAN)?;
        expect_taken(&inbound, "9999", 0)?;
        street.ovd(&["guard", "on"])?;
        let open = street.answered(&street.x, &FROM_THE_LAN)?;
        ensure!(open.is_empty(), "the guard is back, and the LAN reaches {open:?}");
        street.rig.allow(&["c", "b", "--port", "tcp/8080"])?;
        street.expect_open(&c, &["tcp/8080@OVERLAY"])?;

        // What the program opens goes through the proxy, too, and then by the rules of the overlay.
        let a_address = street.rig.fleet.address("a", crate::support::LAB)?;
        let [allowed, refused] = ["8080", "9999"].map(|port| format!("tcp/{port}@{a_address}"));
        street.rig.allow(&["b", "a", "--port", "tcp/8080"])?;
        street.expect_open(&b, &[&allowed])?;
        expect_taken(&outbound, "8080", 0)?;
        let before = taken(&outbound, "9999")?;
        let open = street.answered(&b, &[&refused])?;
        ensure!(open.is_empty(), "no rule lets b reach {open:?}");
        expect_taken(&outbound, "9999", before)?;
        street.rig.allow(&["b", "a", "--port", "tcp/9999"])?;
        street.expect_open(&b, &[&refused])?;

        ensure!(street.ovd(&["guard", "check"])?.contains("Istio"), "the mesh is not named");
        Ok(())
    });
}
