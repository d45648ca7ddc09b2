//! Pure. GRUB's boot sectors for BIOS, put together as `grub-bios-setup` does it.
//!
//! That program wants the file system that holds GRUB to be mounted; a build that
//! mounts nothing writes the few fields itself. `boot.img` goes into the MBR and
//! loads the first sector of `core.img`, which lies in the BIOS boot partition; that
//! sector loads the rest from its list of blocks.

use anyhow::{Result, bail};

pub const SECTOR: usize = 512;
/// Where the partition table's own bytes begin in the MBR.
const MBR_CODE: usize = 440;
/// `boot.img`: where `core.img` begins, a 64-bit sector number.
const KERNEL_SECTOR: usize = 0x5c;
/// `boot.img`: a jump that a hard disk's boot sector has as two NOPs, so that the
/// drive number of a careless BIOS is not believed.
const DRIVE_CHECK: usize = 0x66;
/// `core.img`, first sector: the first entry of the block list (sector, count, segment).
const BLOCK_LIST: usize = SECTOR - 12;
const LOAD_SEGMENT: u16 = 0x820;

/// Writes `boot` into `mbr` and returns `core` as it must lie at sector `core_sector`.
pub fn install_bios(mbr: &mut [u8], boot: &[u8], core: &[u8], core_sector: u64) -> Result<Vec<u8>> {
    if boot.len() != SECTOR || mbr.len() < SECTOR || core.len() <= SECTOR {
        bail!("boot.img or core.img has not the size that GRUB 2 gives it");
    }
    mbr[..MBR_CODE].copy_from_slice(&boot[..MBR_CODE]);
    mbr[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core_sector.to_le_bytes());
    mbr[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);

    let sectors = core.len().div_ceil(SECTOR);
    let mut image = core.to_vec();
    image.resize(sectors * SECTOR, 0);
    let count = u16::try_from(sectors - 1)?;
    image[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(core_sector + 1).to_le_bytes());
    image[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&count.to_le_bytes());
    image[BLOCK_LIST + 10..].as_mut()[..2].copy_from_slice(&LOAD_SEGMENT.to_le_bytes());
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_point_at_each_other_and_the_partition_table_stays() {
        let mut mbr = vec![0xee; SECTOR];
        let boot = vec![0x11; SECTOR];
        let core = vec![0x22; SECTOR * 3 + 5];
        let image = install_bios(&mut mbr, &boot, &core, 2048).unwrap();
        assert_eq!(mbr[KERNEL_SECTOR..KERNEL_SECTOR + 8], 2048u64.to_le_bytes());
        assert_eq!(mbr[0], 0x11);
        assert!(mbr[MBR_CODE..].iter().all(|byte| *byte == 0xee));
        assert_eq!(image.len(), SECTOR * 4);
        assert_eq!(image[BLOCK_LIST..BLOCK_LIST + 8], 2049u64.to_le_bytes());
        assert_eq!(image[BLOCK_LIST + 8..BLOCK_LIST + 12], [3, 0, 0x20, 0x08]);
        assert_eq!(image[SECTOR], 0x22);
    }

    #[test]
    fn strange_sizes_are_refused() {
        assert!(install_bios(&mut [0; SECTOR], &[0; 100], &[0; 2000], 1).is_err());
        assert!(install_bios(&mut [0; SECTOR], &[0; SECTOR], &[0; 10], 1).is_err());
    }
}
