// A file that is read by position, never mapped: one that is cut or changed while open gives a Failure, not a signal.
#pragma once

#include <cstdint>
#include <string>

namespace mobillama {

class File {
 public:
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }  // for hints to the system, not for reading
  // Exactly n bytes from `offset`, or a Failure (MOBILLAMA_IO). Safe from several threads.
  void read(int64_t offset, void* to, int64_t n) const;
  // Failure (MOBILLAMA_IO) if size or modification time are not those of the opening.
  void check_unchanged() const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0, modified_ns_ = 0;
};

// A path for a message: its end, where it is long.
std::string shown_path(const std::string& path);

}  // namespace mobillama
