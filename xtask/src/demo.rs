//! Shows Basin's main job on real guests; `make demo` builds all that it needs first.
//!
//! All happens in a place of its own: a network namespace, a cgroup and a directory
//! with one name. What an earlier run left there, however it ended, the next removes.

mod debian;
mod forward;
mod micro;
mod place;
mod run;
mod running;
mod server;
mod stop;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images;
use crate::shell::quietly;
use crate::steps::Steps;
use crate::test::release_binary;
use forward::Forward;
use place::Place;
use run::{Runner, show};
use server::Server;
use stop::Stop;

#[derive(clap::Args)]
pub struct Options {
    /// End after the last step instead of staying up until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// How many servers take part
    #[arg(long, default_value_t = 1)]
    pub servers: u16,
    /// The program to show, instead of target/release/basin
    #[arg(long, hide = true)]
    pub binary: Option<PathBuf>,
}

/// What the steps work with.
struct Demo<'a> {
    runner: &'a Runner,
    steps: Steps,
}

impl Demo<'_> {
    fn step<T>(&mut self, name: &str, run: impl FnOnce(&Runner) -> Result<T>) -> Result<T> {
        println!();
        let start = Instant::now();
        let runner = self.runner;
        let done = self.steps.step(name, || run(runner));
        let word = if done.is_ok() { "done" } else { "FAILED" };
        println!("    -- {word} after {:.1} s", start.elapsed().as_secs_f64());
        done
    }
}

pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    if options.servers != 1 {
        bail!(
            "SERVERS={}: the demo runs one server; several servers come with the cluster",
            options.servers
        );
    }
    let binary = options.binary.clone().unwrap_or_else(|| release_binary(workspace));
    let binary = std::fs::canonicalize(&binary)
        .with_context(|| format!("{} is not there: run make build", binary.display()))?;
    let stop = Stop::catch()?;
    let place = Place::claim().context("failed: make a place for the demo")?;
    println!("The demo's own place is {}:", place.dir().display());
    println!(
        "network namespace and cgroup {0}; this machine's network stays as it is.",
        place.name()
    );
    let runner = Runner::new(&place, &binary, stop.clone());
    let mut demo = Demo { runner: &runner, steps: Steps::default() };

    let outcome = all(&mut demo, workspace, &place, options.exit, &stop);
    println!("\n{}", demo.steps.summary());
    if let Err(error) = &outcome
        && !stop.asked()
    {
        match place.keep_logs(&binary.with_file_name("demo-logs")) {
            Ok(logs) => println!("{error:#}\n\nThe logs are in {}\n", logs.display()),
            Err(why) => println!("{error:#}\n\nThe logs could not be kept: {why:#}\n"),
        }
    }
    println!("==> cleaning up");
    let cleaned = place.remove().context("failed: clean up");
    match outcome {
        Ok(()) => cleaned,
        Err(_) if stop.asked() => bail!("interrupted before the demo was over"),
        Err(_) => bail!("the demo failed"),
    }
}

fn all(
    demo: &mut Demo<'_>,
    workspace: &Path,
    place: &Place,
    exit: bool,
    stop: &Stop,
) -> Result<()> {
    demo.step("guest images", |_| images::run(workspace, &[]))?;
    let mut server = demo.step("start a server", |runner| {
        let server = Server::start(place, runner)?;
        runner.basin(&["host", "list"])?;
        Ok(server)
    })?;
    demo.step("import the images", |runner| import(runner, &images::cache_dir(workspace)))?;
    micro::all(demo)?;
    debian::all(demo, place)?;
    let access = demo.step("the API over HTTPS, with a token", |r| Access::open(r, place))?;
    server.check()?;
    if exit {
        return Ok(());
    }
    access.explain(place, &demo.runner.program());
    while !stop.asked() {
        server.check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    println!();
    Ok(())
}

fn import(runner: &Runner, images: &Path) -> Result<()> {
    let text = |file: &str| images.join(file).display().to_string();
    let files = [
        (text("micro/vmlinux"), "micro-kernel", "kernel"),
        (text("micro/initrd.img"), "micro-initrd", "initrd"),
        (text("debian/disk.qcow2"), "debian-12", "disk"),
    ];
    for (file, name, kind) in &files {
        runner.basin(&["image", "import", file, "--name", name, "--kind", kind])?;
    }
    let list = runner.basin(&["image", "list"])?;
    files.iter().try_for_each(|(_, name, _)| list.expect(name))
}

/// How others reach the API.
struct Access {
    url: String,
    token: String,
    ca: PathBuf,
    /// Serves as long as it is there.
    _forward: Forward,
}

impl Access {
    fn open(runner: &Runner, place: &Place) -> Result<Access> {
        let forward = Forward::start(&place.netns(), server::HTTPS)?;
        let url = format!("https://{}", forward.address());
        let ca = place.state_dir().join("tls/server.pem");
        let made = quietly(runner.quiet_basin(&["token", "create", "demo"]))?;
        let token = String::from_utf8(made)?.trim().to_owned();
        show(&["BASIN_TOKEN=$(basin token create demo)"]);
        let ca_text = ca.display().to_string();
        let list = runner.outside(&["--url", &url, "--ca", &ca_text, "image", "list"], &token)?;
        list.expect("debian-12")?;
        Ok(Access { url, token, ca, _forward: forward })
    }

    fn explain(&self, place: &Place, program: &Path) {
        let folder = program.parent().unwrap_or(Path::new("/")).display();
        let socket = place.socket().display().to_string();
        println!(
            "The server stays up until Ctrl-C. Its API is at\n\
             \n    socket  {socket}\n    HTTPS   {url}\n    token   {token}\n    CA      {ca}\n\
             \nTry it as root in another terminal:\n\
             \n    export PATH={folder}:$PATH BASIN_SOCKET={socket}\n    \
             basin vm create tiny {create}\n    \
             basin vm list\n    basin vm console tiny\n\
             \nor over HTTPS, with the variables\n\
             \n    BASIN_URL={url} BASIN_CA={ca} BASIN_TOKEN={token}\n\
             \nGuests are reached from inside the namespace:\n\
             \n    nsenter --net={netns} ping $(basin vm ip tiny)\n",
            url = self.url,
            token = self.token,
            ca = self.ca.display(),
            create = micro::create_flags_for_a_shell(),
            netns = place.netns().display(),
        );
    }
}
