//! Overlay names, asked of a real `ovd`.

use anyhow::{Result, ensure};

use crate::support::{SOON, play};
use crate::world::{Machine, poll};

/// Asks for the A records of `name` with nothing but bash; the answer in hexadecimal digits.
fn lookup(machine: &Machine, name: &str) -> Result<String> {
    let labels: String = name
        .split('.')
        .map(|label| {
            let letters: String = label.bytes().map(|byte| format!("\\\\x{byte:02x}")).collect();
            format!("\\\\x{:02x}{letters}", label.len())
        })
        .collect();
    let ask = format!(
        "exec 3<>/dev/udp/127.0.0.1/6053; \
         printf '\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00{}\\x00\\x00\\x01\\x00\\x01' >&3; \
         timeout 3 head -c 12 <&3 | od -An -tx1 -v | tr -d ' \\n'",
        labels.replace("\\\\", "\\")
    );
    machine.run(&["bash", "-c", &ask])?.success("a lookup")
}

#[test]
fn a_host_finds_whom_it_may_talk_to_by_name_and_nobody_else() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let node = rig.fleet.node_mut("a")?;
        node.stop()?;
        node.set_options(&["--dns-listen", "127.0.0.1:6053"]);
        node.start()?;
        rig.allow(&["a", "b"])?;
        let machine = rig.fleet.machine("a")?;

        // The header of an answer: flags with the code, one question, and how many records.
        poll(SOON, "b's name", || {
            let answer = lookup(machine, "b.lab.ov.internal")?;
            Ok((answer == "123481800001000100000000").then_some(()))
        })?;
        let unknown = lookup(machine, "c.lab.ov.internal")?;
        ensure!(unknown == "123481830001000000010000", "c is none of a's: {unknown}");
        rig.revoke(&["a", "b"])?;
        poll(SOON, "b's name to go", || {
            let answer = lookup(machine, "b.lab.ov.internal")?;
            Ok(answer.starts_with("12348183").then_some(()))
        })
    });
}
