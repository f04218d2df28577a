// Files that a model is read from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "onnx/wire.h"

namespace kvik::onnx {

// A regular file's bytes. Small files are read into memory, so that nobody can change them under
// the reader; large ones are mapped read-only.
class File {
 public:
  // Takes the descriptor over. `path` is for messages. Throws kIo.
  static std::shared_ptr<const File> from_descriptor(int descriptor, std::string path,
                                                     bool forbid_hard_links);
  // Follows symbolic links, as opening a model does. FIFOs, directories and devices are refused
  // without blocking. Throws kIo.
  static std::shared_ptr<const File> open(const std::string& path);

  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  Bytes bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  // Device and inode, to tell whether two paths are one file.
  std::pair<std::uint64_t, std::uint64_t> identity() const { return {device_, inode_}; }

  // Gives the memory of these bytes' whole pages back, if they lie in this file and it is mapped;
  // reading them again reads the file again.
  void release(Bytes bytes) const noexcept;

  // Throws kIo when the mapped file has become shorter since: reading the lost pages would end the
  // process. A file that was replaced, not written over, is no problem: the mapping keeps the old.
  void check_not_cut() const;

 private:
  File() = default;

  std::string path_;
  std::string real_path_;  // absolute, so that a change of directory does not matter
  Bytes bytes_;
  std::unique_ptr<std::byte[]> copy_;  // null where mapped
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
};

}  // namespace kvik::onnx
