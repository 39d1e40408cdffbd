// The eight tile registers of AMX, all 16 rows of 64 bytes, for the lifetime of a Tiles object.
//
// Inline assembly instead of the intrinsics: GCC 12 tells its optimiser that _tile_loadconfig reads
// 8 of the 64 bytes and that _tile_loadd reads nothing, so it drops the stores that fill them, and
// _tile_dp* takes no template constants. Here volatile keeps the order among tile instructions and
// the memory clobber keeps it between them and everything else.

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // the other eight do not exist
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64 && offsetof(TileConfig, row_bytes) == 16 &&
              offsetof(TileConfig, rows) == 48);
alignas(64) constexpr TileConfig kTileConfig;

struct Tiles {
  // The configuration belongs to the thread and other libraries change it: every operation loads
  // its own, and gives the registers back so that context switches need not save them.
  Tiles() { __asm__ volatile("ldtilecfg %0" : : "m"(kTileConfig) : "memory"); }
  ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int T>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  // 16 rows of 64 bytes, `stride` bytes apart.
  template <int T>
  void load(const char* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(char* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
  }
  // float32 C[16, 16] += bfloat16 A[16, 32] B[16, 16, 2]
  template <int C, int A, int B>
  void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  // int32 C[16, 16] += uint8 A[16, 64] int8 B[16, 16, 4]
  template <int C, int A, int B>
  void dot_u8s8() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};
