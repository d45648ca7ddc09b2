//! A raw disk that boots under BIOS and UEFI, made without mounting anything.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::grub::{SECTOR, install_bios};
use crate::shell::{command, quietly};

const MIB: u64 = 1 << 20;
const BIOS_BOOT: u64 = MIB;
const ESP: u64 = 2 * MIB;
const ESP_SIZE: u64 = 16 * MIB;
const ROOT: u64 = ESP + ESP_SIZE;

/// All that both firmwares need to read the root file system and start Linux.
const GRUB_MODULES: &str = "part_gpt ext2 normal configfile linux search search_fs_uuid \
    serial terminal echo test halt reboot sleep minicmd";
const GRUB_DIR: &str = "/boot/grub";

pub struct Layout<'a> {
    pub root: &'a Path,
    pub root_uuid: &'a str,
    pub size: u64,
}

/// Writes `disk` out of a directory that holds the root file system. `work` is for
/// files in between.
pub fn assemble(layout: &Layout<'_>, work: &Path, disk: &Path) -> Result<()> {
    let file = File::options().create_new(true).read(true).write(true).open(disk)?;
    file.set_len(layout.size)?;
    partition(disk)?;

    let early = work.join("early.cfg");
    fs::write(&early, early_config(layout.root_uuid))?;
    install_grub_bios(&file, &early, work)?;
    let esp = work.join("esp.img");
    make_esp(&esp, &early, work)?;
    copy_sparse(&esp, &file, ESP)?;
    fs::remove_file(&esp)?;

    let root = work.join("root.img");
    // The backup of the partition table takes the disk's last 33 sectors.
    make_root(layout, &root, layout.size - ROOT - MIB)?;
    copy_sparse(&root, &file, ROOT)?;
    fs::remove_file(&root)?;
    Ok(())
}

fn early_config(root_uuid: &str) -> String {
    format!(
        "search --no-floppy --fs-uuid --set=root {root_uuid}\n\
         set prefix=($root){GRUB_DIR}\n\
         configfile $prefix/grub.cfg\n"
    )
}

/// The root is last, so that it can grow with the disk.
fn partition(disk: &Path) -> Result<()> {
    let script = format!(
        "label: gpt\n\
         start={}, size={}, type=21686148-6449-6E6F-744E-656564454649, name=bios\n\
         start={}, size={}, type=uefi, name=esp\n\
         start={}, size=+, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n",
        BIOS_BOOT / SECTOR as u64,
        (ESP - BIOS_BOOT) / SECTOR as u64,
        ESP / SECTOR as u64,
        ESP_SIZE / SECTOR as u64,
        ROOT / SECTOR as u64,
    );
    let mut child = command("sfdisk", &[&"--quiet", &"--no-reread", &"--no-tell-kernel", &disk])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start sfdisk")?;
    child.stdin.take().context("no standard input")?.write_all(script.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("sfdisk failed: {status}");
    }
    Ok(())
}

fn make_grub(format: &str, early: &Path, output: &Path) -> Result<()> {
    let mut grub = command("grub-mkimage", &[&"-O", &format, &"-p", &GRUB_DIR, &"-c", &early]);
    grub.arg("-o").arg(output).args(GRUB_MODULES.split_whitespace());
    if format == "i386-pc" {
        grub.arg("biosdisk");
    } else {
        grub.args(["efi_gop", "all_video", "fat"]);
    }
    quietly(grub).map(drop)
}

fn install_grub_bios(disk: &File, early: &Path, work: &Path) -> Result<()> {
    let core = work.join("core.img");
    make_grub("i386-pc", early, &core)?;
    let boot = fs::read("/usr/lib/grub/i386-pc/boot.img").context("grub-pc-bin is missing")?;
    let mut mbr = [0; SECTOR];
    disk.read_exact_at(&mut mbr, 0)?;
    let image = install_bios(&mut mbr, &boot, &fs::read(&core)?, BIOS_BOOT / SECTOR as u64)?;
    if image.len() as u64 > ESP - BIOS_BOOT {
        bail!("GRUB's core does not fit into the BIOS boot partition");
    }
    disk.write_all_at(&image, BIOS_BOOT)?;
    disk.write_all_at(&mbr, 0)?;
    fs::remove_file(core)?;
    Ok(())
}

/// The fallback path of UEFI, which firmware without any boot entry tries.
fn make_esp(esp: &Path, early: &Path, work: &Path) -> Result<()> {
    let loader = work.join("bootx64.efi");
    make_grub("x86_64-efi", early, &loader)?;
    File::create(esp)?.set_len(ESP_SIZE)?;
    quietly(command("mkfs.vfat", &[&"-n", &"ESP", &esp]))?;
    quietly(command("mmd", &[&"-i", &esp, &"::/EFI", &"::/EFI/BOOT"]))?;
    quietly(command("mcopy", &[&"-i", &esp, &loader, &"::/EFI/BOOT/BOOTX64.EFI"]))?;
    fs::remove_file(loader)?;
    Ok(())
}

fn make_root(layout: &Layout<'_>, image: &Path, size: u64) -> Result<()> {
    File::create_new(image)?.set_len(size)?;
    // Features that GRUB of Debian 12 cannot read stay off, whatever the builder's defaults.
    let features = "^metadata_csum_seed,^orphan_file";
    let mut mkfs = command("mkfs.ext4", &[&"-q", &"-F", &"-L", &"root", &"-O", &features]);
    mkfs.args(["-U", layout.root_uuid, "-d"]).arg(layout.root).arg(image);
    quietly(mkfs).map(drop)
}

/// Copies `from` to `offset` of `to`, leaving zeroes out.
fn copy_sparse(from: &Path, to: &File, offset: u64) -> Result<()> {
    let mut from = File::open(from)?;
    from.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 64 * 1024];
    let mut at = offset;
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if buffer[..length].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..length], at)?;
        }
        at += length as u64;
    }
}
