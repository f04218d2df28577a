#include "onnx/file.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "kvik/error.h"

namespace kvik::onnx {

namespace {

// Files up to this size are copied: a model without its weights fits, and then nothing that another
// process does to the file can hurt.
constexpr std::int64_t kCopiedSize = std::int64_t{8} << 20;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_io(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::kIo, bare(path, 4096) + ": " + what);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISSOCK(mode)) return "a socket";
  return "not a regular file";
}

void read_fully(int fd, std::byte* to, std::size_t size, const std::string& path) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::pread(fd, to + done, size - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_io(path, std::string("cannot read: ") + std::strerror(errno));
    if (got == 0) {
      throw_io(path, "was cut to " + std::to_string(done) + " of " + std::to_string(size) +
                         " bytes while it was read");
    }
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace

std::shared_ptr<const File> File::from_descriptor(int descriptor, std::string path,
                                                  bool forbid_hard_links) {
  const Descriptor fd(descriptor);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) {
    throw_io(path, std::string("cannot inspect: ") + std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) throw_io(path, std::string("is ") + kind_of(info.st_mode));
  if (forbid_hard_links && info.st_nlink > 1) {
    throw_io(path, "has " + std::to_string(info.st_nlink) +
                       " hard links and may belong to another folder; copy the file instead");
  }
  std::shared_ptr<File> file(new File);
  file->path_ = std::move(path);
  file->device_ = static_cast<std::uint64_t>(info.st_dev);
  file->inode_ = static_cast<std::uint64_t>(info.st_ino);
  const auto size = static_cast<std::size_t>(info.st_size);
  if (info.st_size <= kCopiedSize) {
    file->copy_.reset(new (std::nothrow) std::byte[size == 0 ? 1 : size]);
    if (!file->copy_) {
      throw Error(ErrorCode::kOutOfMemory, "cannot allocate " + std::to_string(size) + " bytes");
    }
    read_fully(fd.get(), file->copy_.get(), size, file->path_);
    file->bytes_ = {file->copy_.get(), size};
    return file;
  }
  if (char* real = ::realpath(file->path_.c_str(), nullptr)) {
    file->real_path_ = real;
    std::free(real);
  }
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (mapped == MAP_FAILED) {
    throw_io(file->path_, std::string("cannot map: ") + std::strerror(errno));
  }
  file->bytes_ = {static_cast<const std::byte*>(mapped), size};
  return file;
}

std::shared_ptr<const File> File::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) throw_io(path, "the path contains a NUL character");
  // O_NONBLOCK: opening a FIFO without a writer would wait for one.
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) throw_io(path, std::string("cannot open: ") + std::strerror(errno));
  return from_descriptor(fd, path, false);
}

File::~File() {
  if (!copy_ && !bytes_.empty()) {
    ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
}

void File::release(Bytes bytes) const noexcept {
  if (copy_ || bytes.data() < bytes_.data() ||
      bytes.data() + bytes.size() > bytes_.data() + bytes_.size()) {
    return;
  }
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto last = reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()) / page * page;
  // A hint: whether it succeeds changes no result.
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void File::check_not_cut() const {
  if (copy_) return;
  struct stat info{};
  if (::stat(real_path_.c_str(), &info) != 0) return;  // gone: the mapping keeps its own reference
  if (static_cast<std::uint64_t>(info.st_dev) != device_ ||
      static_cast<std::uint64_t>(info.st_ino) != inode_) {
    return;
  }
  if (static_cast<std::uint64_t>(info.st_size) < bytes_.size()) {
    throw_io(path_, "was cut from " + std::to_string(bytes_.size()) + " to " +
                        std::to_string(info.st_size) + " bytes while it was in use");
  }
}

}  // namespace kvik::onnx
