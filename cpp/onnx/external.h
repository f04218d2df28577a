// External data: weights in files beside the model.
//
// A location is a relative path that leads to a regular file inside the model's folder. Symbolic
// links are followed only where they end inside it. The folder of a model that is itself reached
// through a symbolic link (as in the Hugging Face cache, whose snapshots link to a folder of blobs)
// is both the folder of the link and the folder of the file that it leads to.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "onnx/file.h"

namespace kvik::onnx {

// The content of TensorProto.external_data.
struct ExternalRange {
  std::string_view location;
  std::int64_t offset = 0;
  std::int64_t length = -1;   // -1 where the file does not say
  std::string_view checksum;  // SHA-1 of the whole file, "" where the file does not say
};

// Reads the keys. `what` names the tensor. Throws kInvalidModel on unknown and repeated keys, on a
// missing location and on numbers that are not plain decimal digits.
ExternalRange parse_external(
    const std::vector<std::pair<std::string_view, std::string_view>>& entries,
    const std::string& what);

// Opens each file once.
class ExternalFiles {
 public:
  ExternalFiles() = default;  // of a model that came from memory: it has no folder
  explicit ExternalFiles(const std::string& model_path);

  // The file, its checksum compared where there is one. `what` names the tensor. Throws
  // kInvalidModel for a location that leads outside, kIo for a file that can't be had.
  std::shared_ptr<const File> open(const ExternalRange& range, const std::string& what);

  const std::vector<std::shared_ptr<const File>>& files() const { return files_; }

 private:
  std::shared_ptr<const File> resolve(const std::string& location, const std::string& what);
  void check_sha1(const std::shared_ptr<const File>& file, std::string_view expected,
                  const std::string& what);

  std::vector<std::string> folders_;  // real paths
  std::vector<std::shared_ptr<const File>> files_;
  std::map<std::string, std::shared_ptr<const File>, std::less<>> by_location_;
  std::map<const File*, std::string> digests_;
};

}  // namespace kvik::onnx
