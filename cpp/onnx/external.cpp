#include "onnx/external.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include "base/text.h"
#include "kvik/error.h"
#include "onnx/sha1.h"

namespace kvik::onnx {

namespace {

[[noreturn]] void fail_external(const std::string& what, const std::string& message) {
  throw Error(ErrorCode::kInvalidModel, what + ": external data: " + message);
}

std::int64_t parse_number(std::string_view text, const char* key, const std::string& what) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || text[0] == '-' || stop != end || error != std::errc()) {
    fail_external(what, std::string(key) + " is " + quote(text) + ", expected a number of bytes");
  }
  return value;
}

// Refuses locations that are not relative POSIX paths without "..", before any file is touched.
void check_location(std::string_view location, const std::string& what) {
  const auto refuse = [&](const char* why) {
    fail_external(what, "location " + quote(location) + " " + why +
                            "; it must be a path relative to the model's folder, inside it");
  };
  if (location.find("_ORT_MEM_ADDR_") != std::string_view::npos) {
    refuse("is an address in another program's memory");
  }
  if (location.empty()) refuse("is empty");
  if (location.find('\0') != std::string_view::npos) refuse("contains a NUL character");
  if (location.find('\\') != std::string_view::npos) refuse("contains a backslash");
  if (location[0] == '/') refuse("is absolute");
  if (location.size() >= 2 && location[1] == ':') refuse("names a drive");
  for (std::size_t start = 0; start <= location.size();) {
    const std::size_t slash = std::min(location.find('/', start), location.size());
    if (location.substr(start, slash - start) == "..") refuse("leaves the folder through '..'");
    start = slash + 1;
  }
}

// The path without symbolic links, or "" with errno set.
std::string real_path(const std::string& path) {
  char* resolved = ::realpath(path.c_str(), nullptr);
  if (!resolved) return {};
  std::string out(resolved);
  std::free(resolved);
  return out;
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The part of `path` below `folder`, or "" when it is not below.
std::string below(const std::string& path, const std::string& folder) {
  const std::string prefix = folder == "/" ? folder : folder + "/";
  return path.compare(0, prefix.size(), prefix) == 0 ? path.substr(prefix.size()) : std::string();
}

// Opens folder/path one component at a time, following no symbolic link: between the check of the
// resolved path and this, nobody can slip one in.
int open_beneath(const std::string& folder, const std::string& path) {
  int at = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  for (std::size_t start = 0; at >= 0;) {
    const std::size_t slash = path.find('/', start);
    const bool last = slash == std::string::npos;
    const std::string name = path.substr(start, last ? slash : slash - start);
    const int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    const int next = ::openat(at, name.c_str(), last ? flags : flags | O_DIRECTORY);
    const int error = errno;
    ::close(at);
    errno = error;
    at = next;
    if (last) break;
    start = slash + 1;
  }
  return at;
}

}  // namespace

ExternalRange parse_external(
    const std::vector<std::pair<std::string_view, std::string_view>>& entries,
    const std::string& what) {
  ExternalRange range;
  std::vector<std::string_view> seen;
  for (const auto& [key, value] : entries) {
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      fail_external(what, "key " + quote(key) + " is there twice");
    }
    seen.push_back(key);
    if (key == "location") {
      range.location = value;
    } else if (key == "offset") {
      range.offset = parse_number(value, "offset", what);
    } else if (key == "length") {
      range.length = parse_number(value, "length", what);
    } else if (key == "checksum") {
      range.checksum = value;
    } else if (key != "basepath") {  // a writer's note to itself: the model's folder decides
      fail_external(what, "unknown key " + quote(key));
    }
  }
  if (std::find(seen.begin(), seen.end(), "location") == seen.end())
    fail_external(what, "no location");
  return range;
}

ExternalFiles::ExternalFiles(const std::string& model_path) {
  const std::string given = real_path(folder_of(model_path));
  const std::string file = real_path(model_path);
  if (!given.empty()) folders_.push_back(given);
  if (!file.empty() && folder_of(file) != given) folders_.push_back(folder_of(file));
}

std::shared_ptr<const File> ExternalFiles::open(const ExternalRange& range,
                                                const std::string& what) {
  const std::string location(range.location);
  auto it = by_location_.find(location);
  if (it == by_location_.end()) {
    check_location(location, what);
    if (folders_.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  what + ": its data is in the file " + quote(location) +
                      ", and a model that is loaded from bytes has no folder; load it by its path");
    }
    it = by_location_.emplace(location, resolve(location, what)).first;
  }
  if (!range.checksum.empty()) check_sha1(it->second, range.checksum, what);
  return it->second;
}

std::shared_ptr<const File> ExternalFiles::resolve(const std::string& location,
                                                   const std::string& what) {
  std::string resolved;
  for (const std::string& folder : folders_) {
    resolved = real_path(folder + "/" + location);
    if (!resolved.empty()) break;
  }
  if (resolved.empty()) {
    throw Error(ErrorCode::kIo, what + ": external data: cannot open " + quote(location) + " in " +
                                    quote(folders_[0], 4096) + ": " + std::strerror(errno));
  }
  for (const std::string& folder : folders_) {
    const std::string relative = below(resolved, folder);
    if (relative.empty()) continue;
    const int fd = open_beneath(folder, relative);
    if (fd < 0) {
      throw Error(ErrorCode::kIo, what + ": external data: cannot open " + quote(resolved, 4096) +
                                      ": " + std::strerror(errno));
    }
    std::shared_ptr<const File> file;
    try {
      file = File::from_descriptor(fd, resolved, /*forbid_hard_links=*/true);
    } catch (const Error& error) {
      throw Error(error.code(), what + ": external data: " + error.what());
    }
    // Two spellings of one file share one mapping.
    for (const auto& known : files_) {
      if (known->identity() == file->identity()) return known;
    }
    files_.push_back(file);
    return file;
  }
  fail_external(what, "location " + quote(location) + " leads to " + quote(resolved, 4096) +
                          ", outside the model's folder " + quote(folders_.back(), 4096));
}

void ExternalFiles::check_sha1(const std::shared_ptr<const File>& file, std::string_view expected,
                               const std::string& what) {
  std::string& digest = digests_[file.get()];
  if (digest.empty()) digest = sha1_hex(file->bytes());
  const bool same = std::equal(
      digest.begin(), digest.end(), expected.begin(), expected.end(), [](char a, char b) {
        return a == (b >= 'A' && b <= 'F' ? static_cast<char>(b - 'A' + 'a') : b);
      });
  if (!same) {
    fail_external(what, "checksum is " + quote(expected) + ", the SHA-1 of " +
                            quote(file->path(), 4096) + " is " + digest);
  }
}

}  // namespace kvik::onnx
