//! `ovd`: see `app::ovd`.

fn main() -> std::process::ExitCode {
    ovmesh::app::ovd::main()
}
