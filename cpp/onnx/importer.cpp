#include "onnx/importer.h"

#include <algorithm>

#include "base/fail.h"
#include "base/text.h"
#include "kvik/error.h"
#include "onnx/external.h"
#include "onnx/file.h"
#include "onnx/graph_importer.h"
#include "onnx/proto.h"
#include "onnx/tensor.h"

namespace kvik::onnx {

namespace {

// Says what a file is that is often mistaken for a model.
void check_magic(Bytes bytes) {
  if (bytes.empty()) fail_model("the file is empty");
  struct Magic {
    std::string_view start;
    const char* kind;
  };
  constexpr Magic kMagics[] = {
      {"GGUF", "a GGUF file"},
      {"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"},
      {"\x80\x02", "a Python pickle"},
      {"\x89HDF", "an HDF5 file"},
      {"version https://git-lfs", "a Git LFS pointer, not the file itself"},
      {"<!DOCTYPE", "a web page"},
      {"<html", "a web page"},
  };
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (const Magic& magic : kMagics) {
    if (text.substr(0, magic.start.size()) != magic.start) continue;
    fail_model(std::string("not an ONNX model: this is ") + magic.kind);
  }
  // A model cannot begin like that: '{' and '\n{' are tags of wire types that ONNX does not use.
  const std::size_t first = text.substr(0, 64).find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '{' && text.find('"') < first + 64) {
    fail_model("not an ONNX model: this is JSON");
  }
}

OpsetMap check_opsets(const std::vector<OpsetId>& opsets, const std::string& where) {
  OpsetMap out;
  for (const OpsetId& opset : opsets) {
    const std::string name = quote(opset.domain.empty() ? "ai.onnx" : opset.domain);
    if (!out.emplace(opset.domain, opset.version).second) {
      fail_model(where + "opset_import has the domain " + name + " twice");
    }
    if (opset.version < 1) {
      fail_model(where + "opset_import has version " + std::to_string(opset.version) + " of " +
                 name);
    }
    if (opset.domain.empty() && (opset.version < kMinOpset || opset.version > kMaxOpset)) {
      throw Error(ErrorCode::kUnsupported, where + "opset " + std::to_string(opset.version) +
                                               " of ONNX; Kvik knows " + std::to_string(kMinOpset) +
                                               " to " + std::to_string(kMaxOpset) +
                                               ", export with one of these");
    }
    if (opset.domain == "com.microsoft" && opset.version != 1) {
      throw Error(ErrorCode::kUnsupported, where + "version " + std::to_string(opset.version) +
                                               " of com.microsoft; Kvik knows version 1");
    }
  }
  return out;
}

void check_header(const ModelView& model) {
  if (!model.ir_version) fail_model("no ir_version: not an ONNX model, or one that was cut short");
  if (*model.ir_version < 3) {
    fail_model("ir_version is " + std::to_string(*model.ir_version) + ", expected 3 to " +
               std::to_string(kMaxIrVersion));
  }
  if (*model.ir_version > kMaxIrVersion) {
    throw Error(ErrorCode::kUnsupported, "ir_version is " + std::to_string(*model.ir_version) +
                                             "; Kvik knows up to " + std::to_string(kMaxIrVersion));
  }
  if (model.opsets.empty()) fail_model("no opset_import");
  if (!model.graph) fail_model("no graph");
}

std::string producer_of(const ModelView& model) {
  std::string out(model.producer_name);
  if (!out.empty() && !model.producer_version.empty()) out += ' ';
  out += model.producer_version;
  return out;
}

graph::Model import_source(Bytes bytes, std::shared_ptr<const void> owner, ExternalFiles& files,
                           const ImportOptions& options) {
  Budget budget(options.limits);
  const Source source{bytes, budget};
  check_magic(bytes);
  const ModelView view = parse_model(source);
  check_header(view);
  const OpsetMap opsets = check_opsets(view.opsets, "");

  TensorReader tensors(source, std::move(owner), files);
  GraphImporter importer(source, tensors, options);
  for (Bytes function_bytes : view.functions) {
    FunctionView function = parse_function(source, function_bytes);
    const std::string where = "function " + quote(function.name) + ": ";
    OpsetMap function_opsets = check_opsets(function.opsets, where);
    importer.add_function(std::move(function), std::move(function_opsets));
  }

  graph::Model model;
  model.ir_version = *view.ir_version;
  model.producer = producer_of(view);
  for (const auto& [domain, version] : opsets) model.opsets.emplace(domain, version);
  for (const auto& [key, value] : view.metadata) {
    budget.take_memory(static_cast<std::int64_t>(key.size() + value.size()) + 128,
                       "metadata_props");
    if (!model.metadata.emplace(key, value).second) {
      fail_model("metadata_props has the key " + quote(key) + " twice");
    }
  }
  model.graph = importer.import_main(*view.graph, opsets);
  return model;
}

}  // namespace

graph::Model import_file(const std::string& path, const ImportOptions& options) {
  const std::shared_ptr<const File> file = File::open(path);
  try {
    ExternalFiles files(path);
    graph::Model model = import_source(file->bytes(), file, files, options);
    auto sources = files.files();
    sources.push_back(file);
    model.check_files = [sources] {
      for (const auto& source : sources) source->check_not_cut();
    };
    model.release_pages = [sources = std::move(sources)](Bytes bytes) {
      for (const auto& source : sources) source->release(bytes);
    };
    return model;
  } catch (const Error& error) {
    throw Error(error.code(), bare(path, 4096) + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                bare(path, 4096) + ": not enough memory to load the model");
  }
}

graph::Model import_bytes(Bytes bytes, const ImportOptions& options,
                          std::shared_ptr<const void> owner) {
  ExternalFiles files;
  try {
    return import_source(bytes, std::move(owner), files, options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "not enough memory to load the model");
  }
}

}  // namespace kvik::onnx
