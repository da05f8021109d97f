//! `ovsap`: see `app::ovsap`.

fn main() -> std::process::ExitCode {
    ovmesh::app::ovsap::main()
}
