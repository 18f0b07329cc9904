//! `fleet bench` on real processes: what it prints, what it refuses, and that nothing stays behind.

mod support;

use std::{path::Path, process::Command};

use support::{FLEET, build_siblings};

fn bench(args: &[&str], dir: Option<&Path>) -> (i32, String, String) {
    let mut command = Command::new(FLEET);
    command.args(["-o", "json", "bench"]).args(args);
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Whether a process runs whose command line names `dir`.
fn runs_in(dir: &Path) -> bool {
    let dir = dir.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(&dir))
}

/// A directory on the disk of the build, whatever the one for temporary files lies on.
fn home() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_started() {
    for args in [
        &["submit", "--clients", "0"][..],
        &["submit", "--clients", "1,x"],
        &["submit", "--secs", "0"],
        &["read", "--target", "nobody"],
        &["failover", "--tries", "0"],
        &["failover", "--profile", "warp"],
        &["finality", "--rate", "0"],
        &["idle", "--agents", "99"],
        &["nothing"],
    ] {
        let (code, out, err) = bench(args, None);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
    }
    // Sizes that tolerate no failure, which only the fleet's plan knows.
    let (code, _, err) = bench(&["idle", "--agents", "2"], None);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn directory_that_holds_something_is_refused() {
    let dir = home();
    std::fs::write(dir.path().join("mine"), "x").unwrap();
    let (code, out, err) = bench(&["submit", "--clients", "1"], Some(dir.path()));
    assert_eq!((code, out.as_str()), (78, ""), "{err}");
    assert!(dir.path().join("mine").exists());
}

#[test]
fn submits_are_measured_one_line_for_each_number_of_clients_and_the_fleet_is_gone_after() {
    build_siblings();
    let dir = home();
    let path = dir.path().join("fleet");
    let (code, out, err) = bench(&["submit", "--clients", "1,3", "--secs", "1"], Some(&path));
    assert_eq!(code, 0, "{err}");
    let rows: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "{out}");
    for (row, clients) in rows.iter().zip([1, 3]) {
        assert_eq!(
            (row["op"].as_str(), row["clients"].as_u64()),
            (Some("submit"), Some(clients))
        );
        assert!(row["ops"].as_u64() > Some(0), "{row}");
        assert_eq!(row["errors"], serde_json::json!({}), "{row}");
        assert!(row["p50_ms"].as_f64() <= row["p99_ms"].as_f64(), "{row}");
        assert!(row["server_cpu_us_per_op"].as_f64() > Some(0.0), "{row}");
    }
    assert!(!runs_in(&path) && !path.exists());
}
