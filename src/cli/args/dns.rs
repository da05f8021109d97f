//! The arguments of `ovctl dns`.

use clap::{Args, Subcommand, ValueEnum};

use crate::types::Name;

/// The verbs of `ovctl dns`.
#[derive(Subcommand, Clone, Debug)]
pub enum DnsCommand {
    /// Print the names of an overlay, for resolvers that are not ours
    #[command(after_help = "\
Examples:
  ovctl dns export hosts --overlay prod | sudo tee -a /etc/hosts
  ovctl dns export headless-services --overlay prod | kubectl apply -f -

An entity is NAME.NAMESPACE.OVERLAY.ov.internal, in the namespace `default` also NAME.OVERLAY.ov.internal; a
service has a line for each of its instances. In Kubernetes each becomes a Service of its name. It is a
picture of this moment: export again when entities come and go.")]
    Export(DnsExportArgs),
}

/// What to export.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DnsExportArgs {
    /// In which form
    #[arg(value_enum)]
    pub form: DnsForm,
    /// The overlay [default: the only one]
    #[arg(long, value_name = "NAME", env = "OVCTL_OVERLAY")]
    pub overlay: Option<Name>,
}

/// In which form names are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DnsForm {
    /// Lines of /etc/hosts
    Hosts,
    /// Headless Services and their EndpointSlices, for Kubernetes
    HeadlessServices,
}
