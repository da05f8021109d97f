//! `ovctl`: see `app::ovctl`.

fn main() -> std::process::ExitCode {
    ovmesh::app::ovctl::main()
}
