# The three programs on Debian slim: `docker build -t ovmesh:0.1.0 .`
# ovd needs: --cap-add NET_ADMIN --device /dev/net/tun. The others need nothing.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --bins

FROM debian:bookworm-slim
# nft: what ovd puts its guard up with.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/ovctl /src/target/release/ovd /src/target/release/ovsap /usr/local/bin/
# Owned by root, so that ovd, which is root without the right to pass over owners, can use them too;
# others name their own with --state-dir and --socket (config/kubernetes).
RUN install -d -m 755 /var/lib/ovmesh /run/ovmesh
CMD ["ovctl", "--help"]
