//! One server and its guests: a microvm, then Debian 12.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::forward::Forward;
use super::place::Site;
use super::run::{Runner, show};
use super::server::{self, Server};
use super::{Setting, debian, import, micro, step};
use crate::images;
use crate::shell::quietly;
use crate::steps::Steps;

/// Inside the namespace, where all ports are free.
const LISTEN: &str = "127.0.0.1:7443";

/// What the steps work with.
pub struct Demo<'a> {
    runner: &'a Runner,
    steps: &'a mut Steps,
}

impl Demo<'_> {
    pub fn step<T>(&mut self, name: &str, run: impl FnOnce(&Runner) -> Result<T>) -> Result<T> {
        step(self.steps, name, || run(self.runner))
    }
}

pub fn all(setting: &Setting<'_>, steps: &mut Steps) -> Result<()> {
    let site = setting.place.site();
    let runner = Runner::new(site, setting.basin, "$", setting.stop.clone());
    let mut demo = Demo { runner: &runner, steps };
    demo.step("guest images", |_| images::run(setting.workspace, &[]))?;
    let mut server = demo.step("start a server", |runner| {
        let server = Server::start(site, runner, &["--listen", LISTEN])?;
        runner.basin(&["host", "list"])?;
        Ok(server)
    })?;
    demo.step("import the images", |runner| {
        let files = [import::ELF_KERNEL, import::INITRD, import::DEBIAN];
        import::all(runner, &images::cache_dir(setting.workspace), &files)
    })?;
    micro::all(&mut demo)?;
    debian::all(&mut demo, setting.place)?;
    let access = demo.step("the API over HTTPS, with a token", |r| Access::open(r, site))?;
    server.check()?;
    if setting.exit {
        return Ok(());
    }
    access.explain(site, setting.basin);
    while !setting.stop.asked() {
        server.check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    println!();
    Ok(())
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
    fn open(runner: &Runner, site: &Site) -> Result<Access> {
        let forward = Forward::start(&site.netns(), server::HTTPS)?;
        let url = format!("https://{}", forward.address());
        let ca = site.state_dir().join("tls/server.pem");
        let made = quietly(runner.quiet_basin(&["token", "create", "demo"]))?;
        let token = String::from_utf8(made)?.trim().to_owned();
        show(&["BASIN_TOKEN=$(basin token create demo)"]);
        let ca_text = ca.display().to_string();
        let list = runner.outside(&["--url", &url, "--ca", &ca_text, "image", "list"], &token)?;
        list.expect("debian-12")?;
        Ok(Access { url, token, ca, _forward: forward })
    }

    fn explain(&self, site: &Site, program: &Path) {
        let folder = program.parent().unwrap_or(Path::new("/")).display();
        let socket = site.socket().display().to_string();
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
            netns = site.netns().display(),
        );
    }
}
