//! `Kb = HMAC-SHA-256(epoch secret, "ovmesh-dst-v1", overlay, b, generation of b)` and
//! `key(a, b) = trunc32(HMAC(Kb, a, generation of the pair))`, 0 becomes 1 (design section 5).
//!
//! Numbers enter the HMAC as 32-bit big-endian words behind the fixed label, so no two inputs
//! share an encoding.

use ring::hmac;

use crate::types::{AuthorizationKey, Generation, NodeId, OverlayId, Secret};

/// Separates these keys from anything else ever derived from an epoch secret.
const LABEL: &[u8] = b"ovmesh-dst-v1";

/// Derives `Kb`, which the destination `to` and the SaPs that serve it hold.
#[must_use]
pub fn destination_secret(
    epoch_secret: &Secret,
    overlay: OverlayId,
    to: NodeId,
    generation: Generation,
) -> Secret {
    let mut context =
        hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, epoch_secret.expose()));
    context.update(LABEL);
    context.update(&overlay.0.to_be_bytes());
    context.update(&to.0.to_be_bytes());
    context.update(&generation.0.to_be_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.sign().as_ref());
    Secret::new(bytes)
}

/// `Kb`, ready to derive the keys of its senders. Deriving allocates nothing and takes two SHA-256
/// blocks.
#[derive(Clone)]
pub struct DestinationKey(hmac::Key);

impl DestinationKey {
    /// Prepares `kb`.
    #[must_use]
    pub fn new(kb: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, kb.expose()))
    }

    /// The key that `from` stamps for this destination.
    #[must_use]
    pub fn pair_key(&self, from: NodeId, pair: Generation) -> AuthorizationKey {
        let mut input = [0; 8];
        input[..4].copy_from_slice(&from.0.to_be_bytes());
        input[4..].copy_from_slice(&pair.0.to_be_bytes());
        let tag = hmac::sign(&self.0, &input);
        let mut bits = [0; 4];
        bits.copy_from_slice(&tag.as_ref()[..4]);
        AuthorizationKey::from_bits(u32::from_be_bytes(bits))
    }
}

impl std::fmt::Debug for DestinationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DestinationKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(overlay: u32, to: u32, generation: u32, from: u32, pair: u32) -> u32 {
        let epoch = Secret::new([7; 32]);
        let kb = destination_secret(&epoch, OverlayId(overlay), NodeId(to), Generation(generation));
        DestinationKey::new(&kb).pair_key(NodeId(from), Generation(pair)).bits()
    }

    #[test]
    fn every_input_changes_the_key() {
        let base = key(1, 2, 3, 4, 5);

        assert_eq!(key(1, 2, 3, 4, 5), base);
        for other in [
            key(2, 2, 3, 4, 5),
            key(1, 3, 3, 4, 5),
            key(1, 2, 4, 4, 5),
            key(1, 2, 3, 5, 5),
            key(1, 2, 3, 4, 6),
        ] {
            assert_ne!(other, base);
        }
    }
}
