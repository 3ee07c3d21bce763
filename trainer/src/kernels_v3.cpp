#define MI_NAMESPACE v3
#include "kernels.inc.hpp"
