//! The arguments of `ovctl kubernetes`.

use clap::{Args, Subcommand};

/// The verbs of `ovctl kubernetes`.
#[derive(Subcommand, Clone, Debug)]
pub enum KubernetesCommand {
    /// Add ovd to the pods of manifests on stdin, and write them to stdout
    #[command(after_help = "\
Examples:
  ovctl kubernetes inject < shop.yaml | kubectl apply -f -
  kubectl get deploy web -o yaml | ovctl kubernetes inject --image registry.example/ovmesh:0.1.0 | kubectl apply -f -

It knows Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob and List; other kinds pass as they are.
Probes of the program go to a port of ovd, which asks the program on localhost: kubelet asks from outside of the
overlay. What was injected before is left alone. Comments are lost, nothing else.

Pods join with a token in a Secret of their namespace:
  ovctl token create --uses 0 --expires 365d --ephemeral --label app=web > token
  kubectl create secret generic ovmesh-join --from-file=token")]
    Inject(InjectArgs),
}

/// How to add ovd.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct InjectArgs {
    /// The image that has ovd
    #[arg(long, value_name = "IMAGE", default_value = concat!("ovmesh:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// The Secret with a reusable join token under the key `token`
    #[arg(long, value_name = "NAME", default_value = "ovmesh-join")]
    pub token_secret: String,
    /// The port where ovd answers probes for the program
    #[arg(long, value_name = "PORT", default_value_t = 6081, value_parser = clap::value_parser!(u16).range(1..))]
    pub health_port: u16,
}
